//! Prompt tables (p-tuning): who may name their rows, and who shares blocks with whom.

use crate::fake::{Reply, RequestSpec, Tensor, dtype};
use crate::script::{TABLE_WIDTH, VOCAB, error, flag, int, model, outputs, request, start, tokens};
use half::f16;

const INVALID_ARG: u32 = 3;
const FIRST: i32 = VOCAB as i32;

fn table(dtype: u32, shape: &[i64], value: f32) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let bytes: Vec<u8> = match dtype {
        dtype::FP16 => (0..count).flat_map(|_| f16::from_f32(value).to_le_bytes()).collect(),
        _ => (0..count).flat_map(|_| value.to_le_bytes()).collect(),
    };
    Tensor::new("prompt_embedding_table", dtype, shape, bytes)
}

fn rows(count: i64) -> Vec<i64> {
    vec![1, count, TABLE_WIDTH as i64]
}

fn reused(replies: &[Reply]) -> i32 {
    replies[0].output("kv_cache_reused_blocks").unwrap().to_int32()[0]
}

#[test]
fn s2_6_tokens_behind_the_vocabulary_are_rows_of_the_table() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let prompt = [FIRST, FIRST + 1, 7];
    for table in [table(dtype::FP16, &rows(2), 0.5), table(dtype::FP32, &rows(2), 0.5)] {
        let replies = model.infer(request(&prompt, 2).input(table).input(int("prompt_vocab_size", 2)));
        assert_eq!(tokens(&replies)[0].1, [FIRST, FIRST + 1, 7, 20, 21], "the prompt comes back as it was");
    }
    let cases = [
        (request(&prompt, 1), "input_ids is 300, expected token ids of 0 to 299"),
        (
            request(&[FIRST + 2, 7], 1).input(table(dtype::FP16, &rows(2), 0.5)),
            "input_ids is 302, expected token ids of 0 to 301",
        ),
        (
            request(&prompt, 1).input(table(dtype::FP16, &[1, 2, 3], 0.5)),
            "prompt_embedding_table has shape [1, 2, 3], expected rows of 4",
        ),
        (request(&prompt, 1).input(table(dtype::FP16, &[8], 0.5)), "prompt_embedding_table has shape [8]"),
        (
            request(&prompt, 1).input(Tensor::int32("prompt_embedding_table", &rows(1), &[1; 4])),
            "has type INT32, expected FP16",
        ),
        (
            request(&prompt, 1).input(table(dtype::FP16, &rows(2), 0.5)).input(flag("return_prompt_log_probs")),
            "the log-probabilities of a prompt with tokens of a prompt table do not exist",
        ),
    ];
    for (request, fragment) in cases {
        let (code, text) = error(&model.infer(request));
        assert!(code == INVALID_ARG && text.contains(fragment), "{text:?} lacks {fragment:?}");
    }
}

#[test]
fn s2_3_each_item_of_a_batch_has_its_own_table() {
    let server = start();
    let model = server.load(model("llm", true, &[])).unwrap();
    let batch = |shape: &[i64]| {
        outputs(RequestSpec::new(""))
            .input(Tensor::int32("input_ids", &[2, 2], &[FIRST, 7, FIRST, 0]))
            .input(Tensor::int32("input_lengths", &[2], &[2, 1]))
            .input(Tensor::int32("request_output_len", &[2, 1], &[1, 1]))
            .input(table(dtype::FP16, shape, 0.5))
    };
    let replies = model.infer(batch(&[2, 1, TABLE_WIDTH as i64]));
    assert_eq!(replies.len(), 2);
    assert!(replies.iter().all(|reply| reply.error.is_none()), "{replies:?}");
    let (_, text) = error(&model.infer(batch(&[1, 2, TABLE_WIDTH as i64])));
    assert!(text.contains("prompt_embedding_table has shape [1, 2, 4], expected rows of 4"), "{text}");
}

#[test]
fn s2_1_blocks_are_shared_by_extra_ids_or_by_equal_rows() {
    let server = start();
    let model = server.load(model("llm", false, &[])).unwrap();
    let prompt: Vec<i32> = [FIRST; 70].into_iter().chain([7]).collect();
    let send = |value: f32, extra: Option<u64>| {
        let mut spec =
            request(&prompt, 1).input(table(dtype::FP32, &rows(1), value)).input(flag("return_perf_metrics"));
        if let Some(id) = extra {
            let ids: Vec<u64> = [id; 70].into_iter().chain([0]).collect();
            spec = spec.input(Tensor::uint64("prompt_table_extra_ids", &[1, 71], &ids));
        }
        reused(&model.infer(spec))
    };
    assert_eq!(send(1.0, None), 0);
    assert!(send(1.0, None) > 0, "equal rows");
    assert_eq!(send(2.0, None), 0, "another image behind the same numbers");
    assert_eq!(send(3.0, Some(9)), 0);
    assert!(send(3.0, Some(9)) > 0, "an equal id");
    assert_eq!(send(3.0, Some(8)), 0, "another id");
}
