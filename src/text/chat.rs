//! Chat templates: a list of messages to the text that a model was trained on, as `apply_chat_template` of Hugging
//! Face transformers renders it.

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind as JinjaErrorKind};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::text::jinja::{self, Raised};
use crate::text::jinja_source;
use crate::text::special::{SPECIAL_KEYS, SideFiles, parse};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Names of a message's reasoning; the first is the one that templates read.
const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The contents of a model folder's files that say how a chat is written; all may be absent.
#[derive(Clone, Debug, Default)]
pub struct ChatFiles {
    /// `chat_template.jinja`
    pub jinja: Option<String>,
    /// `additional_chat_templates/NAME.jinja`, by name
    pub additional: Vec<(String, String)>,
    /// `tokenizer_config.json`
    pub tokenizer_config: Option<String>,
    /// `special_tokens_map.json`
    pub special_tokens_map: Option<String>,
    /// `chat_template.json`
    pub json: Option<String>,
}

/// How a chat is rendered; the default is that of `apply_chat_template`.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// End with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Name of the template; by default `tool_use` where there is one and tools are given, else `default`.
    pub template: Option<String>,
    /// JSON schemas of the tools, a list.
    pub tools: Option<Value>,
    /// Documents to answer from, a list of objects.
    pub documents: Option<Value>,
    /// Further variables of the template (`enable_thinking`, `reasoning_effort`, `date_string` …).
    pub variables: Map<String, Value>,
    /// Local time for templates that print the date, in seconds since 1970-01-01 00:00.
    pub now_s: i64,
}

/// The chat templates of a model. Immutable; share it in an `Arc`.
pub struct ChatTemplate {
    env: Environment<'static>,
    names: Vec<String>,
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Compiles the templates of a model folder: those of `chat_template.jinja`, else of `tokenizer_config.json`, else
    /// of `chat_template.json`. `None` if there are none.
    ///
    /// # Errors
    /// Names the file or template and what is wrong with it.
    pub fn new(files: &ChatFiles) -> Result<Option<Self>> {
        let side = SideFiles {
            tokenizer_config: parse("tokenizer_config.json", files.tokenizer_config.as_deref())?,
            special_tokens_map: parse("special_tokens_map.json", files.special_tokens_map.as_deref())?,
            ..Default::default()
        };
        let mut templates = Vec::new();
        if let Some(source) = &files.jinja {
            templates.push((DEFAULT.to_owned(), source.clone()));
        } else {
            templates = named("tokenizer_config.json", &side.tokenizer_config)?;
            if templates.is_empty() {
                templates = named("chat_template.json", &parse("chat_template.json", files.json.as_deref())?)?;
            }
        }
        for (name, source) in &files.additional {
            templates.retain(|(other, _)| other != name);
            templates.push((name.clone(), source.clone()));
        }
        let tokens = SPECIAL_KEYS.iter().filter_map(|key| Some((key.to_string(), json!(side.token_text(key)?))));
        let tokens = tokens.collect();
        if templates.is_empty() { Ok(None) } else { Self::compile(templates, tokens).map(Some) }
    }

    /// Compiles named templates. `special_tokens` (`bos_token`, `eos_token` …) are variables of every template.
    ///
    /// # Errors
    /// Names the template that is no valid Jinja and says what is wrong with it.
    pub fn compile(templates: Vec<(String, String)>, special_tokens: Map<String, Value>) -> Result<Self> {
        let mut env = jinja::environment().map_err(|error| Error::internal(error.to_string()))?;
        let mut names = Vec::new();
        for (name, source) in templates {
            env.add_template_owned(name.clone(), jinja_source::prepare(&source))
                .map_err(|error| explain(&name, &error))?;
            names.push(name);
        }
        Ok(Self { env, names, special_tokens })
    }

    /// The text of a chat. `messages` is a list of objects with `role`, `content` and what else the template reads.
    ///
    /// # Errors
    /// If the template refuses the messages, reads what is not there, or does not come to an end.
    pub fn render(&self, messages: &Value, options: &ChatOptions) -> Result<String> {
        let name = self.choose(options)?;
        let mut variables = self.special_tokens.clone();
        variables.extend(options.variables.clone());
        variables.insert("messages".into(), prepare_messages(messages)?);
        variables.insert("tools".into(), list_of_objects("tools", options.tools.as_ref())?);
        variables.insert("documents".into(), list_of_objects("documents", options.documents.as_ref())?);
        variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        let now_s = options.now_s;
        let strftime = minijinja::Value::from_function(move |format: &str| jinja::strftime(now_s, format));
        let context = minijinja::context! { strftime_now => strftime, ..minijinja::Value::from(Serde(&variables)) };
        let template = self.env.get_template(name).map_err(|error| explain(name, &error))?;
        template.render(context).map_err(|error| explain(name, &error))
    }

    /// Names of the templates.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn choose<'a>(&'a self, options: &'a ChatOptions) -> Result<&'a str> {
        let has = |name: &str| self.names.iter().any(|other| other == name);
        match &options.template {
            Some(name) if has(name) => Ok(name),
            Some(name) => Err(Error::invalid(format!("there is no chat template {name:?}, only {:?}", self.names))),
            None if options.tools.is_some() && has(TOOL_USE) => Ok(TOOL_USE),
            None if has(DEFAULT) => Ok(DEFAULT),
            None => {
                Err(Error::invalid(format!("none of the chat templates {:?} is the default: name one", self.names)))
            }
        }
    }
}

/// The templates of a JSON file's `chat_template`: a string, or a list of objects with `name` and `template`.
fn named(file: &str, json: &Value) -> Result<Vec<(String, String)>> {
    match json.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![(DEFAULT.to_owned(), source.clone())]),
        Some(Value::Array(templates)) => {
            let text = |template: &Value, key| template.get(key).and_then(Value::as_str).map(str::to_owned);
            let named = templates.iter().map(|template| Some((text(template, "name")?, text(template, "template")?)));
            named.collect::<Option<_>>().ok_or_else(|| {
                Error::invalid(format!("{file}: each entry of chat_template needs a \"name\" and a \"template\""))
            })
        }
        Some(_) => Err(Error::invalid(format!("{file}: chat_template must be a string or a list of named templates"))),
    }
}

/// The messages without what is null, with the reasoning under every name that templates read it by.
fn prepare_messages(messages: &Value) -> Result<Value> {
    let Value::Array(mut messages) = list_of_objects("messages", Some(messages))? else { return Ok(json!([])) };
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        message.retain(|_, value| !value.is_null());
        if let Some(reasoning) = REASONING_KEYS.iter().find_map(|key| message.get(*key)).cloned() {
            message.entry("thinking").or_insert_with(|| reasoning.clone());
            message.insert(REASONING_KEYS[0].into(), reasoning);
        }
    }
    Ok(messages.into())
}

fn list_of_objects(name: &str, value: Option<&Value>) -> Result<Value> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Value::Null) };
    let items = value.as_array().ok_or_else(|| Error::invalid(format!("{name} must be a list of objects")))?;
    match items.iter().position(|item| !item.is_object()) {
        Some(i) => Err(Error::invalid(format!("{name} must be a list of objects, but item {i} is none"))),
        None => Ok(value.clone()),
    }
}

/// Says what went wrong in the template called `name`.
fn explain(name: &str, error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Error::invalid(message).context(format!("the chat template {name:?} refuses the messages"));
        }
        cause = error.source();
    }
    let message = match (error.kind(), error.detail()) {
        (JinjaErrorKind::OutOfFuel, _) => "it does not come to an end within the bound of steps".to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    Error::invalid(message + &line).context(format!("the chat template {name:?} fails"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile(vec![(DEFAULT.into(), source.into())], Map::new()).unwrap()
    }

    fn render(source: &str, messages: Value) -> Result<String> {
        template(source).render(&messages, &ChatOptions::default())
    }

    fn config(template: Value) -> ChatFiles {
        let config = json!({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
        ChatFiles { tokenizer_config: Some(config.to_string()), ..Default::default() }
    }

    #[test]
    fn the_template_is_looked_for_where_hugging_face_looks() {
        let text = |files: &ChatFiles| {
            let found = ChatTemplate::new(files).unwrap();
            found.map(|template| template.render(&json!([]), &ChatOptions::default()).unwrap())
        };
        assert_eq!(text(&ChatFiles::default()), None);
        assert_eq!(text(&config(Value::Null)), None);
        let mut files = ChatFiles { json: Some(json!({"chat_template": "json"}).to_string()), ..Default::default() };
        assert_eq!(text(&files).unwrap(), "json");
        files.tokenizer_config = config(json!("{{ bos_token }}config{{ eos_token }}")).tokenizer_config;
        assert_eq!(text(&files).unwrap(), "<s>config</s>");
        files.jinja = Some("jinja{{ unk_token }}".into());
        assert_eq!(text(&files).unwrap(), "jinja");
    }

    #[test]
    fn named_templates_are_chosen_by_name_or_by_the_presence_of_tools() {
        let both = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]);
        let mut files = config(both);
        files.additional = vec![("rag".into(), "{{ documents[0].text }}".into())];
        let chat = ChatTemplate::new(&files).unwrap().unwrap();
        let text = |options: &ChatOptions| chat.render(&json!([]), options);
        let tools = Some(json!([{"name": "f"}]));
        assert_eq!(text(&ChatOptions::default()).unwrap(), "plain");
        assert_eq!(text(&ChatOptions { tools: tools.clone(), ..Default::default() }).unwrap(), "tools");
        let named =
            |name: &str| ChatOptions { template: Some(name.into()), tools: tools.clone(), ..Default::default() };
        assert_eq!(text(&named("default")).unwrap(), "plain");
        let documents = Some(json!([{"text": "d"}]));
        assert_eq!(text(&ChatOptions { documents, ..named("rag") }).unwrap(), "d");
        let error = text(&named("other")).unwrap_err();
        assert!(error.message().contains("no chat template \"other\""), "{error}");
        assert_eq!(chat.names(), ["default", "tool_use", "rag"]);
        let only = ChatTemplate::new(&config(json!([{"name": "rag", "template": ""}]))).unwrap().unwrap();
        assert!(only.render(&json!([]), &ChatOptions::default()).is_err());
    }

    #[test]
    fn bad_templates_are_refused_at_load() {
        for (value, part) in [
            (json!("{% if %}"), "the chat template \"default\" fails: syntax error"),
            (json!("{{ x | nofilter }"), "fails: syntax error"),
            (json!(5), "tokenizer_config.json: chat_template must be a string"),
            (json!([{"name": "a"}]), "needs a \"name\" and a \"template\""),
        ] {
            let error = ChatTemplate::new(&config(value)).err().unwrap();
            assert!(error.kind() == ErrorKind::InvalidArg && error.message().contains(part), "{error}");
        }
    }

    #[test]
    fn errors_name_the_template_and_the_reason() {
        for (source, part) in [
            ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
            ("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}", "refuses the messages: deep"),
            ("a\n{{ nothing.content }}", "undefined value: `nothing` is undefined (line 2)"),
            ("{{ 'a' + 1 }}", "(line 1)"),
            ("{{ messages | nofilter }}", "nofilter"),
            ("{{ nothing | tojson }}", "undefined cannot be written as JSON"),
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                "does not come to an end",
            ),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ] {
            let error = render(source, json!([])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArg);
            assert!(error.message().contains("the chat template \"default\" "), "{error}");
            assert!(error.message().contains(part), "{error}");
        }
    }

    #[test]
    fn messages_tools_and_documents_are_lists_of_objects() {
        for messages in [json!({}), json!("hi"), json!([{}, "hi"])] {
            let error = render("", messages).unwrap_err();
            assert!(error.message().starts_with("messages must be a list of objects"), "{error}");
        }
        let options = ChatOptions { tools: Some(json!([1])), ..Default::default() };
        assert!(template("").render(&json!([]), &options).unwrap_err().message().contains("item 0 is none"));
    }

    #[test]
    fn the_date_is_that_of_the_request() {
        let chat = template("{{ strftime_now('%d %B %Y, %A %j %-d %I:%M:%S %p') }}");
        let text = |now_s| chat.render(&json!([]), &ChatOptions { now_s, ..Default::default() }).unwrap();
        assert_eq!(text(0), "01 January 1970, Thursday 001 1 12:00:00 AM");
        assert_eq!(text(951_782_399 + 1), "29 February 2000, Tuesday 060 29 12:00:00 AM");
        assert_eq!(text(1_735_689_599), "31 December 2024, Tuesday 366 31 11:59:59 PM");
        assert!(render("{{ strftime_now('%Q') }}", json!([])).is_err());
    }

    #[test]
    fn text_of_a_message_is_data_not_template() {
        let text = "{{ 7 * 7 }} {% raw %} <b>&amp;'\"";
        assert_eq!(render("{{ messages[0].content }}", json!([{"content": text}])).unwrap(), text);
    }

    #[test]
    fn it_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<ChatTemplate>();
    }
}
