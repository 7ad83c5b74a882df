//! What the first versions did otherwise than all later ones, recognised by what a configuration declares.

use serde_json::Value;

use crate::config::ModelRole;

/// A difference that changes what a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldVersion {
    /// `preprocessing` of 0.5: the words of a row are one comma-separated text, encoded with special tokens.
    WordLines,
    /// `postprocessing` of 0.5: rows come without their lengths.
    WholeRows,
    /// The LLM up to 0.9: log-probabilities are part of every answer, and `postprocessing` cannot do without them.
    LogProbsAlways,
}

/// Inputs of the LLM that came with the executor.
const SINCE_0_10: [&str; 5] = [
    "draft_acceptance_threshold",
    "early_stopping",
    "runtime_top_p_min",
    "beam_search_diversity_rate",
    "num_return_sequences",
];

impl OldVersion {
    /// What the configuration of a role asks for. Later versions never match: from 0.6 word lists are optional and
    /// `postprocessing` has lengths; from 0.7 `REQUEST_OUTPUT_LEN` is INT32 and there are `add_special_tokens` and
    /// `skip_special_tokens`.
    pub fn of(role: ModelRole, config: &Value) -> Option<Self> {
        let declared = |name: &str| config["input"].as_array()?.iter().find(|input| input["name"] == name);
        let mandatory = |name: &str| declared(name).is_some_and(|input| input["optional"].as_bool() != Some(true));
        match role {
            ModelRole::Preprocessing => {
                let words = ["BAD_WORDS_DICT", "STOP_WORDS_DICT"].into_iter().all(mandatory);
                let unsigned = declared("REQUEST_OUTPUT_LEN").is_some_and(|input| input["data_type"] == "TYPE_UINT32");
                let later = declared("EMBEDDING_BIAS_WORDS").is_some()
                    || config["parameters"].get("add_special_tokens").is_some();
                (words && unsigned && !later).then_some(Self::WordLines)
            }
            ModelRole::Postprocessing => {
                let alone = config["input"].as_array().is_some_and(|inputs| inputs.len() == 1);
                let later = config["parameters"].get("skip_special_tokens").is_some();
                (alone && declared("TOKENS_BATCH").is_some() && !later).then_some(Self::WholeRows)
            }
            ModelRole::Llm => {
                let any = |names: &[&str]| names.iter().any(|name| declared(name).is_some());
                let given = |key: &str| config["parameters"].get(key).is_some();
                let outputs = config["output"].as_array().into_iter().flatten();
                let answered = outputs.filter(|output| output["name"] == "cum_log_probs").count() > 0;
                let unsigned = declared("request_output_len").is_some_and(|input| input["data_type"] == "TYPE_UINT32");
                let early = any(&["min_length", "random_seed"])
                    && (unsigned || given("max_num_sequences") || given("enable_trt_overlap"));
                (answered && early && !any(&SINCE_0_10)).then_some(Self::LogProbsAlways)
            }
            _ => None,
        }
    }

    /// For the operator.
    pub fn note(self) -> &'static str {
        match self {
            Self::WordLines => {
                "BAD_WORDS_DICT and STOP_WORDS_DICT are mandatory and REQUEST_OUTPUT_LEN is UINT32, as in version 0.5: \
                 the words of a prompt are one comma-separated text, and each is encoded with special tokens; declare \
                 the two optional for one word an element, without special tokens"
            }
            Self::WholeRows => {
                "SEQUENCE_LENGTH is not declared, as in version 0.5: rows are decoded as a whole, without the -1 at \
                 their end"
            }
            Self::LogProbsAlways => {
                "inputs and parameters are those of version 0.9 and before: cum_log_probs and output_log_probs are part \
                 of every answer, as zeros unless return_log_probs is set"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn preprocessing() -> Value {
        let input = |name: &str, data_type: &str| json!({ "name": name, "data_type": data_type, "dims": [-1] });
        let inputs = [
            input("QUERY", "TYPE_STRING"),
            input("BAD_WORDS_DICT", "TYPE_STRING"),
            input("STOP_WORDS_DICT", "TYPE_STRING"),
            input("REQUEST_OUTPUT_LEN", "TYPE_UINT32"),
        ];
        json!({ "input": inputs, "parameters": { "tokenizer_type": { "string_value": "auto" } } })
    }

    #[test]
    fn s6_1_version_0_5_is_known_by_all_its_marks_and_no_other_has_them() {
        let of = |edit: &dyn Fn(&mut Value)| {
            let mut config = preprocessing();
            edit(&mut config);
            OldVersion::of(ModelRole::Preprocessing, &config)
        };
        assert_eq!(of(&|_| ()), Some(OldVersion::WordLines));
        assert_eq!(of(&|config| config["input"][1]["optional"] = json!(false)), Some(OldVersion::WordLines));
        for index in [1, 2] {
            assert_eq!(of(&|config| config["input"][index]["optional"] = json!(true)), None, "0.6");
        }
        assert_eq!(of(&|config| config["input"][3]["data_type"] = json!("TYPE_INT32")), None, "0.7");
        assert_eq!(of(&|config| config["parameters"]["add_special_tokens"] = json!({})), None, "0.7");
        let bias = json!({ "name": "EMBEDDING_BIAS_WORDS" });
        assert_eq!(of(&|config| config["input"].as_array_mut().unwrap().push(bias.clone())), None);
        assert_eq!(of(&|config| config["input"] = json!([])), None, "nothing is declared");
        assert_eq!(OldVersion::of(ModelRole::Llm, &preprocessing()), None);
    }

    #[test]
    fn s7_4_log_probabilities_are_always_there_up_to_version_0_9() {
        let of = |inputs: &[&str], keys: &[&str], output: &str| {
            let inputs: Vec<_> = inputs.iter().map(|name| json!({ "name": name })).collect();
            let keys: Value = keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect();
            let config = json!({ "input": inputs, "output": [{ "name": output }], "parameters": keys });
            OldVersion::of(ModelRole::Llm, &config)
        };
        let always = Some(OldVersion::LogProbsAlways);
        assert_eq!(of(&["min_length"], &["enable_trt_overlap"], "cum_log_probs"), always);
        assert_eq!(of(&["random_seed"], &["max_num_sequences"], "cum_log_probs"), always);
        assert_eq!(of(&["min_length", "early_stopping"], &["enable_trt_overlap"], "cum_log_probs"), None, "0.10");
        assert_eq!(of(&["min_tokens"], &["enable_trt_overlap"], "cum_log_probs"), None, "1.x");
        assert_eq!(of(&["min_length"], &[], "cum_log_probs"), None, "a short one of any version");
        assert_eq!(of(&["min_length"], &["enable_trt_overlap"], "output_ids"), None, "0.5");
    }

    #[test]
    fn s6_2_rows_have_lengths_unless_none_are_declared() {
        let of = |names: &[&str], parameters: Value| {
            let inputs: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
            OldVersion::of(ModelRole::Postprocessing, &json!({ "input": inputs, "parameters": parameters }))
        };
        assert_eq!(of(&["TOKENS_BATCH"], json!({})), Some(OldVersion::WholeRows));
        assert_eq!(of(&["TOKENS_BATCH"], json!({ "skip_special_tokens": {} })), None, "0.7");
        for others in [&["TOKENS_BATCH", "SEQUENCE_LENGTH"][..], &["TOKENS_BATCH", "LENGTHS"], &[]] {
            assert_eq!(of(others, json!({})), None, "{others:?}");
        }
    }
}
