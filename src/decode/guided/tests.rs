use std::sync::LazyLock;

use super::*;

const END: TokenId = 256;
const TOOL: TokenId = 257;

/// One token for each byte, an end token, a special token and some longer tokens.
static GUIDES: LazyLock<Guides> = LazyLock::new(|| {
    let mut tokens: Vec<_> = (0..=255_u8).map(|byte| GuideToken::Text(vec![byte])).collect();
    tokens.push(GuideToken::Special("<|end|>".into()));
    tokens.push(GuideToken::Special("<|tool|>".into()));
    tokens.extend(["{\"", "\": ", "\",", "true", "ab", "<f", "n=", "é"].map(|text| GuideToken::Text(text.into())));
    tokens.push(GuideToken::Text(Vec::new()));
    Guides::new(&tokens).unwrap()
});

fn compile(kind: GuideKind, text: &str) -> Result<Guide> {
    GUIDES.compile(&GuideSource { kind, text: text.to_owned() })
}

/// Whether the guide takes the whole text, byte by byte, and may end then.
fn accepts(guide: &Guide, text: &str) -> bool {
    let mut matcher = guide.matcher(&[END]);
    for byte in text.bytes() {
        let token = TokenId::from(byte);
        if !matcher.mask().is_ok_and(|mask| mask.allows(token)) || matcher.advance(token).is_err() {
            return false;
        }
    }
    matcher.mask().is_ok_and(|mask| mask.allows(END))
}

fn check(kind: GuideKind, text: &str, good: &[&str], bad: &[&str]) {
    let guide = compile(kind, text).unwrap();
    good.iter().for_each(|good| assert!(accepts(&guide, good), "{text} refuses {good:?}"));
    bad.iter().for_each(|bad| assert!(!accepts(&guide, bad), "{text} takes {bad:?}"));
}

#[test]
fn json_is_any_object() {
    check(GuideKind::Json, "", &["{}", r#"{"a": [1, null, {"b": "é"}]}"#], &["[]", "1", "", "{", "{} x"]);
}

#[test]
fn a_schema_is_held() {
    let schema = r##"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 4}, "next": {"$ref": "#"},
        "kind": {"enum": ["x", "y"]}}, "required": ["name"], "additionalProperties": false}"##;
    check(
        GuideKind::JsonSchema,
        schema,
        &[r#"{"name": "ab"}"#, r#"{"name":"a","next":{"name":"b"},"kind":"y"}"#],
        &[r#"{"name": "abcde"}"#, "{}", r#"{"name": 1}"#, r#"{"name":"a","kind":"z"}"#, r#"{"name":"a","other":1}"#],
    );
}

#[test]
fn a_regex_fits_the_whole_answer() {
    check(GuideKind::Regex, r"^\d{3}-[a-z]+/?$", &["123-ab", "123-a/"], &["12-ab", "123-", "x123-a", "123-a//"]);
    check(GuideKind::Regex, r"(a+)+b", &["aab"], &["b", "aa"]);
    check(GuideKind::Regex, r"cost\$", &["cost$"], &["cost"]);
}

#[test]
fn a_choice_may_begin_another_one() {
    check(
        GuideKind::Choice,
        r#"["yes", "yes, but", "\"no\"\n"]"#,
        &["yes", "yes, but", "\"no\"\n"],
        &["ye", "yes,", "no"],
    );
}

#[test]
fn lark_is_taken_as_it_is() {
    check(GuideKind::Lark, "start: \"a\" x\nx: \"(\" x \")\" | \"b\"", &["ab", "a((b))"], &["a", "a(b", "b"]);
    let tool = compile(GuideKind::Lark, "start: <|tool|> \"a\"").unwrap();
    let mut matcher = tool.matcher(&[END]);
    assert!(matcher.mask().unwrap().allows(TOOL) && !matcher.mask().unwrap().allows(97));
}

#[test]
fn ebnf_is_exact_where_it_needs_no_recursion() {
    check(GuideKind::EbnfGrammar, r#"root ::= "a" "bc" | "ab" "d""#, &["abc", "abd"], &["ab", "abcd"]);
    check(GuideKind::EbnfGrammar, r#"root ::= [a-z]+ "a""#, &["ba", "aaa"], &["a", "ab"]);
    check(
        GuideKind::EbnfGrammar,
        "root ::= x{2,3} y?\nx ::= \"a\" # one\ny ::= [^\\x00-z\\u00e9]",
        &["aa", "aaa~"],
        &["a", "aaaa", "aaé"],
    );
}

#[test]
fn ebnf_with_recursion() {
    let json = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= [ \t\n]{0,20}
"#;
    check(
        GuideKind::EbnfGrammar,
        json,
        &["{}", r#"{"a": [1, 2.5e3, {"b": "x\n"}], "c": true}"#, "{ \"a\" : null }\n"],
        &["[]", "{", r#"{"a"}"#, r#"{"a": tru}"#],
    );
    check(GuideKind::EbnfGrammar, "root ::= \"(\" root \")\" | ", &["", "()", "(())"], &["(", "())"]);
}

#[test]
fn ebnf_errors_name_the_rule() {
    let message = |text: &str| compile(GuideKind::EbnfGrammar, text).unwrap_err().message().to_owned();
    assert!(message("root ::= other").contains("rule other is used and not defined"));
    assert!(message("start ::= \"a\"").contains("no rule root"));
    assert!(message("root ::= \"a").contains("rule root: a text has no closing quote"));
    assert!(message("root ::= (\"a\"").contains("within brackets"));
    assert!(message("root ::= [z-a]").contains("ends before it begins"));
    assert!(message("root ::= \"a\"{3,1}").contains("{3,1}"));
    assert!(message("root ::= \"a\"\nroot ::= \"b\"").contains("defined twice"));
}

#[test]
fn tags_stand_in_free_text() {
    let legacy = r#"{"type": "structural_tag", "triggers": ["<fn="], "structures": [
        {"begin": "<fn=a>", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
         "additionalProperties": false}, "end": "</fn>"},
        {"begin": "<fn=b>", "schema": {"type": "integer"}, "end": "</fn>"}]}"#;
    let good = ["", "free < text", "so <fn=a>{\"x\": 1}</fn> and <fn=b>2</fn>", "<fn=b>2</fn>"];
    check(GuideKind::StructuralTag, legacy, &good, &["<fn=c>", "<fn=a>{}</fn>", "x <fn=b>2", "<fn=b>a</fn>"]);
    let format = r#"{"type": "structural_tag", "format": {"type": "sequence", "elements": [
        {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
        {"type": "or", "elements": [{"type": "const_string", "value": "yes"}, {"type": "regex", "pattern": "n+o"}]},
        {"type": "grammar", "grammar": "root ::= \"!\" root | \"?\""}]}}"#;
    check(
        GuideKind::StructuralTag,
        format,
        &["<think>a < b</think>yes?", "<think></think>nno!!?"],
        &["yes?", "<think>a</think>no!"],
    );
}

#[test]
fn what_cannot_be_compiled_is_an_error_that_says_why() {
    let message = |kind, text: &str| compile(kind, text).unwrap_err().message().to_owned();
    assert!(message(GuideKind::JsonSchema, "{").contains("json_schema guide cannot be compiled: not JSON"));
    assert!(message(GuideKind::JsonSchema, "3").contains("an object, not a number"));
    assert!(message(GuideKind::Json, "{}").contains("has no text"));
    assert!(
        message(GuideKind::JsonSchema, r#"{"type": "integer", "minimum": 3, "maximum": 1}"#)
            .contains("cannot be compiled")
    );
    assert!(message(GuideKind::Regex, "a(").contains("regex guide"));
    assert!(message(GuideKind::Choice, "[]").contains("0 answers"));
    assert!(message(GuideKind::Lark, "").contains("empty"));
    assert!(message(GuideKind::StructuralTag, "{}").contains("neither format nor structures"));
    assert!(message(GuideKind::Lark, &"(".repeat(10_000)).contains("nested 10000 deep"));
    assert!(message(GuideKind::JsonSchema, &"[".repeat(10_000)).contains("not JSON"));
    assert!(
        message(GuideKind::JsonSchema, &format!("\"{}\"", "x".repeat(MAX_GUIDE_BYTES))).contains("at most 1048576")
    );
    assert!(GuideKind::parse("xml").unwrap_err().message().contains("json, json_schema, regex"));
}

#[test]
fn great_grammars_end_in_time() {
    for (kind, text) in [
        (GuideKind::Regex, ".{1,100000}".to_owned()),
        (GuideKind::Regex, "(((a{1,100}){1,100}){1,100}){1,100}".to_owned()),
        (GuideKind::EbnfGrammar, "root ::= (([a-z]{0,1000}){0,1000}){0,1000}".to_owned()),
        (GuideKind::JsonSchema, format!(r#"{{"enum": [{}1]}}"#, "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaa\", ".repeat(20_000))),
    ] {
        if let Ok(guide) = compile(kind, &text) {
            assert!(guide.matcher(&[END]).mask().is_ok());
        }
    }
}

#[test]
fn end_ids_are_allowed_exactly_when_the_answer_is_complete() {
    let guide = compile(GuideKind::Regex, "ab?").unwrap();
    let mut matcher = guide.matcher(&[END, 65]);
    let allowed = |mask: &TokenMask| (0..266).filter(|&token| mask.allows(token)).collect::<Vec<_>>();
    assert_eq!(allowed(&matcher.mask().unwrap()), [97, 262]);
    matcher.advance(97).unwrap();
    let mask = matcher.mask().unwrap();
    assert_eq!((allowed(&mask), mask.only_end()), (vec![65, 98, END], false));
    matcher.advance(98).unwrap();
    let mask = matcher.mask().unwrap();
    assert_eq!((allowed(&mask), mask.only_end()), (vec![65, END], true));
    matcher.advance(END).unwrap();
    matcher.advance(5).unwrap();
    assert!(matcher.mask().unwrap().only_end());
}

#[test]
fn a_token_that_is_not_allowed_is_an_error() {
    let guide = compile(GuideKind::Regex, "ab").unwrap();
    let mut matcher = guide.matcher(&[END]);
    assert!(matcher.advance(98).unwrap_err().message().contains("guided decoding cannot go on"));
    assert!(matcher.mask().is_err());
}

#[test]
fn matchers_of_a_guide_are_independent_and_may_move_to_threads() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let guide = compile(GuideKind::Regex, "a*b").unwrap();
    let mut matchers: Vec<_> = (0..4).map(|_| is_send(guide.matcher(&[END]))).collect();
    for (length, matcher) in matchers.iter_mut().enumerate() {
        for _ in 0..length {
            assert!(matcher.mask().unwrap().allows(97));
            matcher.advance(97).unwrap();
        }
    }
    matchers[1].advance(98).unwrap();
    assert!(matchers[1].mask().unwrap().only_end());
    assert!(!matchers[3].mask().unwrap().only_end());
}

#[test]
fn a_guide_learns_from_matchers_and_answers_as_before() {
    let schema = r#"{"type": "object", "properties": {"a": {"type": "string", "maxLength": 6}, "b": {"type": "array", "items":
        {"type": "integer", "minimum": -7, "maximum": 300}}}, "additionalProperties": false}"#;
    for (kind, text) in [
        (GuideKind::JsonSchema, schema),
        (GuideKind::Json, ""),
        (GuideKind::Regex, "([a-f]{2,5}[0-9]+ ?)*x?"),
        (GuideKind::Choice, r#"["yes", "yes, but", "no"]"#),
        (GuideKind::EbnfGrammar, "root ::= \"(\" root \")\" root | \"x\" | [0-9]+"),
        (GuideKind::Lark, "start: (\"a\" | <|tool|>)* \"b\""),
    ] {
        let (learning, plain) = (compile(kind, text).unwrap(), compile(kind, text).unwrap());
        let work = |guide: &Guide| guide.0.start.lock().work;
        let known = work(&plain);
        let mut state = 7_u64;
        for walk in 0..40 {
            let (mut one, mut other) = (learning.matcher(&[END]), plain.matcher(&[END]));
            // Walks are cut off, end, or go wrong.
            for step in 0..walk {
                let mask = one.mask();
                assert_eq!(mask, other.mask(), "{text}: walk {walk}, step {step}");
                let Ok(mask) = mask else { break };
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let from = (state >> 40) as TokenId % 266;
                let allowed = (0..266).map(|offset| (from + offset) % 266).find(|&token| mask.allows(token));
                let token = if walk % 9 == 8 && step == 4 { from } else { allowed.unwrap() };
                assert_eq!(one.advance(token), other.advance(token));
            }
            learning.take_back(one);
        }
        assert!(work(&learning) > known, "{text}: nothing was learnt");
        assert_eq!(work(&plain), known);
    }
}

#[test]
fn a_mask_takes_the_other_tokens_away() {
    let guide = compile(GuideKind::Regex, "[a-c]").unwrap();
    let mask = guide.matcher(&[END]).mask().unwrap();
    let mut logits = vec![1.0_f32; GUIDES.vocab_size];
    mask.apply(&mut logits);
    let left: Vec<_> = (0..logits.len()).filter(|&token| logits[token] == 1.0).collect();
    assert_eq!(left, [97, 98, 99]);
    assert_eq!(mask.words().len(), GUIDES.vocab_size.div_ceil(32));
}
