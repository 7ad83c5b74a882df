//! Golden traces: each file of `traces/` holds settings, operations, and (behind `>`) the plans that they lead to.
//!
//! A chunk is written `name[start..end]`, its new blocks `+ids` (`=ids`: the whole table, again), `!` where it samples.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use triton_trtllm::engine::fake::FakeExecutor;
use triton_trtllm::engine::{EngineConfig, EngineCore, Request, SchedulerPolicy};
use triton_trtllm::ids::{BlockId, RequestId, SeqId, TokenId};
use triton_trtllm::step::StepPlan;

use crate::common::{Recorder, SEED, Tape, limits, request};

#[test]
fn traces_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/traces");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 6, "the traces are missing");
    let mut wrong = String::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let actual = replay(&text);
        if actual != text {
            let name = file.file_name().unwrap().to_string_lossy();
            writeln!(wrong, "==> {name} <==\n{actual}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "these traces came out otherwise:\n{wrong}");
}

struct Replay {
    core: EngineCore,
    plans: Arc<Mutex<Vec<StepPlan>>>,
    names: HashMap<SeqId, String>,
    ids: HashMap<String, RequestId>,
    tapes: Vec<(String, Tape)>,
    now: u64,
}

/// The text with the lines behind `>` replaced by what happens.
fn replay(text: &str) -> String {
    let mut replay = None;
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with('>')) {
        writeln!(out, "{line}").unwrap();
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "" | "#" => {}
            "engine" => replay = Some(Replay::new(rest)),
            _ => out += &replay.as_mut().expect("a trace begins with its engine").act(verb, rest),
        }
    }
    out
}

fn fields(text: &str) -> HashMap<&str, &str> {
    text.split_whitespace().map(|field| field.split_once('=').unwrap_or((field, ""))).collect()
}

impl Replay {
    fn new(settings: &str) -> Self {
        let fields = fields(settings);
        let number = |name: &str, default: usize| fields.get(name).map_or(default, |value| value.parse().unwrap());
        let mut limits = limits();
        limits.num_blocks = number("blocks", limits.num_blocks);
        limits.pipeline_depth = number("depth", 1);
        let config = EngineConfig {
            policy: match fields.get("policy").copied().unwrap_or("guaranteed_no_evict") {
                "guaranteed_no_evict" => SchedulerPolicy::GuaranteedNoEvict,
                "max_utilization" => SchedulerPolicy::MaxUtilization,
                "static" => SchedulerPolicy::StaticBatch,
                other => panic!("policy {other}"),
            },
            max_batch_size: number("batch", 8),
            max_step_tokens: number("tokens", 32),
            chunked_context: number("chunked", 1) == 1,
            ..EngineConfig::for_limits(&limits)
        };
        let plans = Arc::default();
        let recorder = Recorder { inner: FakeExecutor::new(limits, SEED), plans: Arc::clone(&plans) };
        let core = EngineCore::new(config, Box::new(recorder), None).unwrap();
        Self { core, plans, names: HashMap::new(), ids: HashMap::new(), tapes: Vec::new(), now: 0 }
    }

    fn act(&mut self, verb: &str, rest: &str) -> String {
        match verb {
            "submit" => self.submit(rest),
            "cancel" => self.core.cancel(self.ids[rest]),
            "step" => (0..rest.parse().unwrap_or(1)).for_each(|_| self.step()),
            other => panic!("operation {other}"),
        }
        self.core.check().unwrap();
        let plans = std::mem::take(&mut *self.plans.lock().unwrap());
        let mut out: String = plans.iter().map(|plan| format!("> {}\n", self.plan(plan))).collect();
        for (name, tape) in self.tapes.extract_if(.., |(_, tape)| tape.reason().is_some()) {
            writeln!(out, "> {name} ends: {:?}, {} tokens", tape.reason().unwrap(), tape.tokens().len()).unwrap();
        }
        out
    }

    fn step(&mut self) {
        self.now += 1;
        self.core.step(self.now).unwrap();
    }

    /// `submit NAME PROMPT max=N [priority=N]`; a letter of the prompt is a token.
    fn submit(&mut self, rest: &str) {
        let fields = fields(rest);
        let mut words = rest.split_whitespace();
        let (name, prompt) = (words.next().unwrap(), words.next().unwrap());
        let tokens = prompt.bytes().map(|letter| TokenId::from(letter - b'a'));
        let priority = fields.get("priority").map_or(0, |value| value.parse().unwrap());
        let request = Request { priority, ..request(tokens, fields["max"].parse().unwrap()) };
        let tape = Tape::default();
        let id = self.core.submit(request, tape.sink(), self.now).unwrap();
        self.names.insert(SeqId(self.names.len() as u64 + 1), name.to_string());
        self.ids.insert(name.to_string(), id);
        self.tapes.push((name.to_string(), tape));
    }

    fn plan(&self, plan: &StepPlan) -> String {
        let ids = |blocks: &[BlockId]| blocks.iter().map(BlockId::to_string).collect::<Vec<_>>().join(",");
        let mut text = format!("{}:", plan.step);
        for chunk in &plan.chunks {
            write!(text, " {}[{}..{}]", self.names[&chunk.seq], chunk.start, chunk.start + chunk.len).unwrap();
            if !chunk.append_blocks.is_empty() {
                let sign = if chunk.keep_blocks == 0 { '=' } else { '+' };
                write!(text, "{sign}{}", ids(&chunk.append_blocks)).unwrap();
            }
            text += if chunk.sample { "!" } else { "" };
        }
        for copy in &plan.block_copies {
            write!(text, " copy {}->{} ({})", copy.from, copy.to, copy.num_tokens).unwrap();
        }
        for seq in &plan.retired {
            write!(text, " retire {}", self.names[seq]).unwrap();
        }
        text
    }
}
