//! What speaks against a compiled kernel.

/// Something wrong with a kernel.
pub struct Problem {
    pub text: String,
    /// Whether there is no image.
    pub fatal: bool,
}

/// What the assembler's report `log` says against the kernels of `label`: registers that do not suffice, and warpgroup
/// products that wait for one another.
pub fn complaints(label: &str, log: &str) -> Vec<Problem> {
    let mut kernel = "";
    let mut problems = Vec::new();
    for line in log.lines() {
        if let Some(at) = line.find("entry function '") {
            kernel = line[at + 16..].split('\'').next().unwrap_or("");
        }
        let spilled =
            |what: &str| line.find(what).and_then(|at| line[..at].trim_end().rsplit(' ').next()?.parse().ok());
        let bytes = spilled("bytes spill stores").unwrap_or(0u64) + spilled("bytes spill loads").unwrap_or(0u64);
        if bytes > 0 {
            problems.push(Problem { text: format!("{label}: {kernel} spills: {}", line.trim()), fatal: false });
        }
        if line.contains("C7510") || line.contains("serialized") {
            problems.push(Problem { text: format!("{label}: {}", line.trim()), fatal: false });
        }
    }
    problems
}
