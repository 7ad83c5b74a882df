//! The drop-in contract, row by row: the names of the tests start with the section that they hold.

use half::f16;

use crate::fake::{ParameterValue, RequestSpec, Tensor, dtype};
use crate::script::{error, flag, int, model, request, start, tokens, with_id};

const PROMPT: [i32; 3] = [5, 6, 7];
const UNSUPPORTED: u32 = 5;

fn typed(name: &str, dtype: u32, bytes: &[u8]) -> Tensor {
    Tensor::new(name, dtype, &[1], bytes.to_vec())
}

fn replace(mut request: RequestSpec, tensor: Tensor) -> RequestSpec {
    request.inputs.retain(|input| input.tensor.name != tensor.name);
    request.input(tensor)
}

fn bias(values: &[f32]) -> Tensor {
    Tensor::fp32("embedding_bias", &[1, values.len() as i64], values)
}

#[test]
fn s2_1_declared_types_are_converted() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let unsigned = |name: &str, value: u32| typed(name, dtype::UINT32, &value.to_le_bytes());
    let old = request(&PROMPT, 2)
        .input(unsigned("beam_width", 1))
        .input(unsigned("pad_id", 0))
        .input(unsigned("runtime_top_k", 1))
        .input(unsigned("min_length", 1))
        .input(unsigned("end_id", u32::MAX))
        .input(unsigned("prompt_vocab_size", 0));
    let old = replace(old, unsigned("request_output_len", 3));
    assert_eq!(tokens(&model.infer(old))[0].1, [5, 6, 7, 20, 21, 2], "0.5: UINT32, -1 by its bits");
    let wide = replace(request(&PROMPT, 0), typed("request_output_len", dtype::INT64, &2i64.to_le_bytes()))
        .input(typed("temperature", dtype::FP16, &f16::from_f32(0.5).to_le_bytes()))
        .input(typed("runtime_top_p", dtype::FP64, &0.5f64.to_le_bytes()))
        .input(typed("seed", dtype::INT32, &7i32.to_le_bytes()))
        .input(typed("early_stopping", dtype::INT32, &1i32.to_le_bytes()));
    assert_eq!(tokens(&model.infer(wide))[0].1, [5, 6, 7, 20, 21]);
    let too_wide = replace(request(&PROMPT, 2), typed("request_output_len", dtype::INT64, &(1i64 << 40).to_le_bytes()));
    let (_, text) = error(&model.infer(too_wide));
    assert!(text.contains("`request_output_len` has the value 1099511627776, beyond the range of INT32"), "{text}");
    let number = request(&PROMPT, 2).input(Tensor::bools("early_stopping", &[1], &[true]));
    assert_eq!(tokens(&model.infer(number))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn s2_1_scalars_come_with_and_without_reshape() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    for shape in [&[1][..], &[1, 1]] {
        let spec = replace(request(&PROMPT, 0), Tensor::int32("request_output_len", shape, &[2]))
            .input(Tensor::bools("streaming", shape, &[true]))
            .input(Tensor::int32("end_id", shape, &[-1]));
        assert_eq!(model.infer(spec).len(), 2, "{shape:?}");
    }
}

#[test]
fn s11_64_optional_tensors_without_elements_are_absent() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let spec = request(&PROMPT, 2)
        .input(bias(&[]))
        .input(Tensor::int32("bad_words_list", &[1, 2, 0], &[]))
        .input(Tensor::int32("end_id", &[1, 0], &[]))
        .input(Tensor::fp32("temperature", &[1, 0], &[]))
        .input(Tensor::int32("draft_input_ids", &[1, 0], &[]))
        .input(Tensor::new("prompt_embedding_table", dtype::FP16, &[1, 0, 0], Vec::new()))
        .input(Tensor::strings("guided_decoding_guide_type", &[1, 1], &[""]));
    assert_eq!(tokens(&model.infer(spec))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn s2_1_the_embedding_bias_decides_at_every_step() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let mut values = vec![0.0; 31];
    values[30] = 50.0;
    let steered = tokens(&model.infer(request(&PROMPT, 2).input(bias(&values))));
    assert_eq!(steered[0].1, [5, 6, 7, 30, 30], "a list that is shorter than the vocabulary");
    let mut long = vec![0.0; 310];
    (long[20], long[305]) = (f32::NEG_INFINITY, 99.0);
    let forbidden = tokens(&model.infer(request(&PROMPT, 1).input(bias(&long))));
    assert_ne!(forbidden[0].1[3], 20, "-inf forbids a token");
    assert!(forbidden[0].1[3] < 300, "what exceeds the vocabulary has no effect");
}

#[test]
fn s2_1_no_ngram_is_repeated() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let prompt = [7, 20, 3, 5, 6, 7];
    assert_eq!(tokens(&model.infer(request(&prompt, 1)))[0].1[6], 20);
    let spec = request(&prompt, 1).input(int("no_repeat_ngram_size", 2));
    assert_ne!(tokens(&model.infer(spec))[0].1[6], 20);
    let spec = request(&prompt, 1).input(int("no_repeat_ngram_size", 3));
    assert_eq!(tokens(&model.infer(spec))[0].1[6], 20);
}

#[test]
fn s2_1_top_p_decay_and_its_companions_are_accepted() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let spec = request(&PROMPT, 2)
        .input(Tensor::fp32("runtime_top_p", &[1], &[0.9]))
        .input(Tensor::fp32("runtime_top_p_decay", &[1], &[0.5]))
        .input(Tensor::fp32("runtime_top_p_min", &[1], &[0.1]))
        .input(int("runtime_top_p_reset_ids", 13))
        .input(int("prompt_ignore_length", 2));
    assert_eq!(tokens(&model.infer(spec))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn s2_8_request_type_has_three_words_and_others_count_as_none() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let of = |value: ParameterValue| request(&PROMPT, 2).parameter("request_type", value);
    for value in [
        ParameterValue::Text("context_and_generation".into()),
        ParameterValue::Text("something_else".into()),
        ParameterValue::Int(3),
    ] {
        assert_eq!(tokens(&model.infer(of(value)))[0].1, [5, 6, 7, 20, 21]);
    }
    assert!(server.log().iter().any(|(_, _, text)| text.contains("request_type is \"something_else\"")));
    let (code, text) = error(&model.infer(of(ParameterValue::Text("context_only".into()))));
    assert_eq!((code, text.as_str()), (UNSUPPORTED, "request_type context_only is not supported by this version"));
    let others = request(&PROMPT, 2)
        .parameter("Streaming", ParameterValue::Bool(true))
        .parameter("sequence_id", ParameterValue::Int(4))
        .parameter("max_token", ParameterValue::Double(0.5));
    assert_eq!(tokens(&model.infer(others))[0].1, [5, 6, 7, 20, 21]);
}

#[test]
fn s5_3_the_gauges_of_several_instances_add_up() {
    let server = start();
    let spec = model("llm", true, &[("max_batch_size", "4"), ("stats_check_period_ms", "1")]);
    let model = server.load(spec.instances(2)).unwrap();
    let gauge = |family, label, value| server.metric(family, &[(label, value), ("model", "llm")]).unwrap().value;
    assert_eq!(gauge("nv_trt_llm_request_metrics", "request_type", "max"), 8.0);
    assert_eq!(gauge("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "max"), 65536.0);
    assert_eq!(gauge("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "tokens_per"), 64.0);
    let endless = |id: &str| with_id(request(&[100], 1_000_000), id).input(flag("streaming"));
    let running = [model.execute_on(0, vec![endless("a")])[0], model.execute_on(1, vec![endless("b")])[0]];
    running.iter().for_each(|ticket| drop(ticket.wait_for(2)));
    let active = || gauge("nv_trt_llm_request_metrics", "request_type", "active");
    crate::operation::until(|| active() == 2.0);
    running[0].cancel();
    running[0].wait();
    crate::operation::until(|| active() == 1.0);
    running[1].cancel();
    running[1].wait();
    crate::operation::until(|| active() == 0.0);
}
