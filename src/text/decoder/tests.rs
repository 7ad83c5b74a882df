use super::*;

fn decode(decoder: &str, tokens: &[&str]) -> Result<String> {
    let decoder: DecoderWrapper = serde_json::from_str(decoder).unwrap();
    let program = Program::compile(Some(&decoder))?;
    let mut state = program.start();
    let mut text = String::new();
    for (i, token) in tokens.iter().enumerate() {
        match program.piece(token, i == 0)? {
            (bytes, true) => state.push(&program, Piece::RunByte(&bytes[0]), &mut text),
            (bytes, false) => state.push(&program, Piece::Bytes(&bytes), &mut text),
        }
    }
    state.finish(&program, &mut text);
    Ok(text)
}

#[test]
fn strip_works_on_the_fused_text() {
    let strip = r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":" ","start":2,"stop":1}]}"#;
    assert_eq!(decode(strip, &[" ", "  a ", " ", " b", " ", " "]).unwrap(), " a   b ");
    assert_eq!(decode(strip, &["", "", " "]).unwrap(), "");
    assert_eq!(decode(strip, &[]).unwrap(), "");
}

#[test]
fn decoders_that_must_see_the_whole_text_are_refused_by_name() {
    let ctc = r#"{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true}"#;
    let late = r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}"#;
    let long =
        r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Replace","pattern":{"String":"ab"},"content":""}]}"#;
    for (decoder, name) in [(ctc, "CTC"), (late, "ByteFallback after Fuse"), (long, "Replace of more than one")] {
        let error = decode(decoder, &["a"]).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Unsupported);
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn a_regex_before_the_tokens_are_joined_is_applied() {
    let regex =
        r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"Regex":"_+"},"content":" "},{"type":"Fuse"}]}"#;
    assert_eq!(decode(regex, &["a__b", "_"]).unwrap(), "a b ");
}
