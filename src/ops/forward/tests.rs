use super::*;
use crate::device::cpu::{CpuDevice, CpuOptions};
use crate::ops::PlanningDevice;

struct Fixture {
    device: SharedDevice,
    arena: Arena,
    step: StepTensors,
    kv: Vec<KvLayer>,
}

impl Fixture {
    /// Three tokens, one layer with 2 kv heads of 4 elements.
    fn new() -> Self {
        let real: SharedDevice = CpuDevice::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
        let device = PlanningDevice::shared(&real);
        let ids = |cols| Tensor::zeros(&device, 1, cols, DType::I32, "ids").unwrap();
        let batch = AttentionBatch {
            cu_seqlens: ids(2),
            context_lens: ids(1),
            block_tables: ids(1),
            max_query_len: 3,
            max_context_len: 3,
        };
        let step = StepTensors {
            tokens: ids(3),
            positions: ids(3),
            slots: ids(3),
            sample_rows: ids(1),
            batch,
            windows: Vec::new(),
        };
        let data = Tensor::zeros(&device, 2 * 2 * 8, 4, DType::F32, "cache").unwrap();
        let kv = vec![KvLayer { data, kv_heads: 2, block_size_tokens: 8, head_dim: 4, keys_only: false }];
        let arena = Arena::new(&device, 1 << 16).unwrap();
        Self { device, arena, step, kv }
    }

    fn forward(&self) -> Forward<'_> {
        Forward::new(&self.device, &self.arena, &self.step, &self.kv, DType::F32)
    }

    fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::zeros(&self.device, rows, cols, DType::F32, "test").unwrap()
    }
}

#[test]
fn shape_errors_name_the_operation_and_both_shapes() {
    let fixture = Fixture::new();
    let cx = fixture.forward();
    let message = |result: Result<Tensor>| result.unwrap_err().message().to_owned();
    let x = fixture.tensor(3, 16);
    assert_eq!(
        message(cx.linear(&x, &Weight::Dense(fixture.tensor(8, 12)), None)),
        "linear: x [3, 16] float32 does not fit weight [8, 12] float32"
    );
    assert_eq!(
        message(cx.linear(&x, &Weight::Dense(fixture.tensor(8, 16)), Some(&fixture.tensor(1, 9)))),
        "linear: weight [8, 16] float32 does not fit bias [1, 9] float32"
    );
    assert!(message(cx.rms_norm(&x, &fixture.tensor(1, 8), 1e-5)).starts_with("rms_norm: x [3, 16]"));
    assert!(
        message(cx.add_rms_norm(&x, &fixture.tensor(2, 16), &x, 1e-5)).starts_with("add_rms_norm: residual [3, 16]")
    );
    assert!(message(cx.gated_activation(&fixture.tensor(3, 7), Activation::Silu)).starts_with("gated_activation"));
    let args = LayerAttention {
        layer: 0,
        num_heads: 4,
        rope: None,
        scale: 1.0,
        window: None,
        sink_tokens: 0,
        chunk: None,
        softcap: None,
        sinks: None,
        alibi: None,
    };
    assert!(message(cx.attention(&fixture.tensor(3, 12), None, &args)).starts_with("attention: q [3, 12]"));
    assert!(message(cx.attention(&x, None, &LayerAttention { layer: 1, ..args })).contains("layer 1 has no KV cache"));
    let (q, k) = (fixture.tensor(3, 16), fixture.tensor(3, 8));
    assert!(cx.rope_kv_write(&q, &k, &k, &args).is_ok());
    let error = cx.rope_kv_write(&q, &fixture.tensor(3, 12), &fixture.tensor(3, 12), &args).unwrap_err();
    assert!(error.message().starts_with("rope_kv_write: k [3, 12]"));
}

#[test]
fn a_scope_gives_back_what_was_made_in_it() {
    let fixture = Fixture::new();
    let cx = fixture.forward();
    let outer = cx.activation(3, 16).unwrap();
    let addresses = || {
        let _scope = cx.scope();
        (cx.activation(3, 100).unwrap().addr(), cx.activation(1, 1).unwrap().addr())
    };
    let first = addresses();
    assert_eq!(first, addresses());
    assert!(first.0 > outer.addr() && first.1 > first.0 && first.1.is_multiple_of(256));
    assert_eq!(fixture.arena.used_bytes(), 256);
    assert_eq!(fixture.arena.high_water_bytes(), 256 + 1280 + 256);
}

#[test]
fn a_step_larger_than_the_plan_is_an_error() {
    let fixture = Fixture::new();
    let error = fixture.forward().activation(1 << 10, 1 << 10).unwrap_err();
    assert!(error.message().contains("0 of 65536 bytes are in use"), "{error}");
}
