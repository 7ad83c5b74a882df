//! What the build says against kernels: the gate in front of a release.

#[path = "../build/assembler.rs"]
mod assembler;

use assembler::complaints;

const GOOD: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gemv_bf16' for 'sm_90a'
ptxas info    : Function properties for gemv_bf16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]
";

const SPILLS: &str = "ptxas info    : Compiling entry function 'sample' for 'sm_80'
ptxas info    : Function properties for sample
    200 bytes stack frame, 56 bytes spill stores, 76 bytes spill loads
";

const SERIALIZED: &str = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
non wgmma instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the function \
'attention_prefill_wgmma_bf16_128'
";

#[test]
fn a_kernel_that_spills_or_waits_for_itself_is_named() {
    assert!(complaints("gemv.cu [sm_90a]", GOOD).is_empty());
    let both = [GOOD, SPILLS, GOOD, SERIALIZED].concat();
    let problems = complaints("a.cu [sm_90a]", &both);
    let texts: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("a.cu [sm_90a]: sample spills") && texts[0].contains("56 bytes"), "{texts:?}");
    assert!(texts[1].contains("C7510") && texts[1].contains("attention_prefill_wgmma_bf16_128"), "{texts:?}");
    assert!(problems.iter().all(|problem| !problem.fatal));
}
