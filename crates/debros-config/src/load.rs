//! How a file, the environment and the defaults become one configuration.
//!
//! Both layers are turned into texts by key, checked by the key's kind, and laid over each other; serde then fills
//! the structs. Every problem is collected with its place before anything is refused. Values that are wrong in
//! the file are told even if the environment overrides them: a file that is wrong will be found out some day.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value as Json};

use crate::{
    Config, ConfigError, Effect, KeyDoc, Origin, Problem, Warning,
    document::{self, Entry, Located, Value},
    keys::{self, KEYS},
    nearest,
};

/// The largest configuration file read: some ten thousand bootstrap peers. Keeps a wrong path (a disk image, a
/// device) from filling the memory.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

const PREFIX: &str = "DEBROS_";
const SEPARATOR: &str = "__";
/// The variable many programs share; the one of our own wins over it.
const LOG_LEVEL: &str = "LOG_LEVEL";
const LOG_LEVEL_KEY: &str = "logging.level";

/// A configuration and what its writer should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The effective configuration, with nothing left to derive.
    pub config: Config,
    /// To be shown to the user; nothing in them stops a node.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Reads a file and lays the environment (as of [`std::env::vars_os`]) over it.
    pub fn load<K, V>(
        path: &Path,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Loaded, ConfigError>
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let text = read(path)?;
        assemble(&text, environment).map_err(|problems| invalid(Some(path), problems))
    }

    /// A configuration from YAML alone.
    pub fn from_yaml(text: &str) -> Result<Loaded, ConfigError> {
        Self::from_yaml_and_environment(text, std::iter::empty::<(OsString, OsString)>())
    }

    /// A configuration from YAML and the environment; an empty text is a node without a file.
    pub fn from_yaml_and_environment<K, V>(
        text: &str,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Loaded, ConfigError>
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        assemble(text, environment).map_err(|problems| invalid(None, problems))
    }

    /// The effective configuration as YAML: every key, derived ones too. Reading it gives the same configuration.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(&self.clone().resolved())
            .expect("structs of text, numbers and lists always have a YAML form")
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|_| ConfigError::NotText { path: path.to_owned() })
}

fn invalid(file: Option<&Path>, problems: Vec<Problem>) -> ConfigError {
    ConfigError::Invalid { file: file.map(PathBuf::from), problems }
}

fn assemble<K, V>(text: &str, environment: impl IntoIterator<Item = (K, V)>) -> Result<Loaded, Vec<Problem>>
where
    K: Into<OsString>,
    V: Into<OsString>,
{
    let mut layers = Layers::default();
    match document::parse(text) {
        Ok(value) => layers.file(value),
        Err(problem) => layers.problems.push(problem),
    }
    layers.environment(environment);
    layers.finish()
}

/// The values so far. A later layer replaces what an earlier one set.
#[derive(Default)]
struct Layers {
    values: BTreeMap<&'static str, Setting>,
    problems: Vec<Problem>,
}

struct Setting {
    key: &'static KeyDoc,
    origin: Origin,
    value: Json,
}

impl Layers {
    fn problem(&mut self, origin: Origin, key: impl Into<String>, message: String) {
        self.problems.push(Problem { origin, key: key.into(), message });
    }

    fn set(&mut self, key: &'static KeyDoc, origin: Origin, value: Json) {
        self.values.insert(key.path, Setting { key, origin, value });
    }

    fn file(&mut self, root: Value) {
        let sections = match root {
            Value::Empty => return,
            Value::Map(sections) => sections,
            other => {
                let message = format!("expected sections such as `node:`, found {}", other.describe());
                return self.problem(Origin::Line(1), "", message);
            }
        };
        for Entry { line, key: name, value } in sections {
            if !keys::sections().contains(&name.as_str()) {
                let message = format!("unknown section `{name}`; {}", nearest::advice_for_section(&name));
                self.problem(Origin::Line(line), name, message);
                continue;
            }
            match value.value {
                Value::Empty => {}
                Value::Map(entries) => entries.into_iter().for_each(|entry| self.file_entry(&name, entry)),
                other => {
                    let message =
                        format!("`{name}`: expected the keys of a section, found {}", other.describe());
                    self.problem(Origin::Line(line), name, message);
                }
            }
        }
    }

    fn file_entry(&mut self, section: &str, Entry { line, key: name, value }: Entry) {
        let path = format!("{section}.{name}");
        let Some(key) = keys::find(&path) else {
            let message = format!("unknown key `{path}`; {}", nearest::advice_for_key(section, &name));
            return self.problem(Origin::Line(line), path, message);
        };
        match value.value {
            Value::Empty => {}
            Value::Text(_) | Value::List(_) | Value::Map(_) if matches!(key.effect, Effect::Replaced(_)) => {
                self.set(key, Origin::Line(line), Json::Null);
            }
            Value::List(items) if key.kind.is_list() => self.file_list(key, line, items),
            Value::Text(text) if !key.kind.is_list() => self.scalar(key, Origin::Line(value.line), &text),
            other if key.kind.is_list() => {
                let message = format!(
                    "`{path}`: expected a list, each item on a line of its own behind `- `, found {}",
                    other.describe()
                );
                self.problem(Origin::Line(line), path, message);
            }
            other => {
                let message =
                    format!("`{path}`: expected {}, found {}", key.kind.expected(), other.describe());
                self.problem(Origin::Line(line), path, message);
            }
        }
    }

    fn file_list(&mut self, key: &'static KeyDoc, line: u64, items: Vec<Located>) {
        let mut values = Vec::new();
        for Located { line, value } in items {
            match value {
                Value::Text(text) => values.extend(self.item(key, Origin::Line(line), &text)),
                other => {
                    let expected = key.kind.expected();
                    let message = format!("`{}`: expected {expected}, found {}", key.path, other.describe());
                    self.problem(Origin::Line(line), key.path, message);
                }
            }
        }
        self.set(key, Origin::Line(line), Json::Array(values));
    }

    fn item(&mut self, key: &'static KeyDoc, origin: Origin, text: &str) -> Option<Json> {
        match key.kind.parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.problem(origin, key.path, format!("`{}`: {reason}", key.path));
                None
            }
        }
    }

    fn scalar(&mut self, key: &'static KeyDoc, origin: Origin, text: &str) {
        if text.is_empty() && key.is_optional() {
            return self.set(key, origin, Json::Null);
        }
        if let Some(value) = self.item(key, origin.clone(), text) {
            self.set(key, origin, value);
        }
    }

    fn environment<K, V>(&mut self, environment: impl IntoIterator<Item = (K, V)>)
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        // Sorted, so that the same environment always gives the same messages.
        let variables: BTreeMap<OsString, OsString> =
            environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        if let Some(value) = variables.get(&OsString::from(LOG_LEVEL)) {
            let key = keys::find(LOG_LEVEL_KEY).expect("the level of the log is a key");
            if !value.is_empty() {
                self.variable(key, LOG_LEVEL, value);
            }
        }
        for (name, value) in &variables {
            let Some(name) = name.to_str() else { continue };
            let Some((section, leaf)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once(SEPARATOR))
            else {
                self.single_underscore(name, value);
                continue;
            };
            match KEYS.iter().find(|key| key.variable() == name) {
                Some(key) => self.variable(key, name, value),
                None => self.unknown_variable(name, section, leaf),
            }
        }
    }

    fn variable(&mut self, key: &'static KeyDoc, name: &str, value: &OsString) {
        let origin = Origin::Variable(name.to_owned());
        let Some(text) = value.to_str() else {
            return self.problem(origin, key.path, format!("`{}`: the value is not UTF-8 text", key.path));
        };
        if matches!(key.effect, Effect::Replaced(_)) {
            self.set(key, origin, Json::Null);
        } else if key.kind.is_list() {
            let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
            let values = texts.filter_map(|text| self.item(key, origin.clone(), text)).collect();
            self.set(key, origin, Json::Array(values));
        } else {
            self.scalar(key, origin, text);
        }
    }

    /// Refuses a key's variable that was written with one underscore where there are two.
    fn single_underscore(&mut self, name: &str, value: &OsString) {
        let meant = KEYS.iter().find(|key| key.variable().replace(SEPARATOR, "_") == name);
        // Kubernetes sets DEBROS_ADMIN_PORT to tcp://10.0.0.1:9001 for a service named `debros-admin`.
        let of_a_service =
            value.to_str().is_some_and(|value| value.contains("://")) && name.ends_with("_PORT");
        if let (Some(key), false) = (meant, of_a_service) {
            let message = format!("there are two underscores behind the section: {}", key.variable());
            self.problem(Origin::Variable(name.to_owned()), key.path, message);
        }
    }

    fn unknown_variable(&mut self, name: &str, section: &str, leaf: &str) {
        let (section, leaf) = (section.to_ascii_lowercase(), leaf.to_ascii_lowercase());
        let meant = match nearest::section(&section) {
            Some(section) => nearest::key(section, &leaf),
            None => nearest::key(&section, &leaf),
        };
        let message = match meant {
            Some(key) => format!("there is no such key; did you mean {}?", key.variable()),
            None => format!("there is no such key; the sections are {}", keys::sections().join(", ")),
        };
        self.problem(Origin::Variable(name.to_owned()), format!("{section}.{leaf}"), message);
    }

    fn finish(mut self) -> Result<Loaded, Vec<Problem>> {
        let mut warnings = Vec::new();
        let mut sections: BTreeMap<&str, Map<String, Json>> = BTreeMap::new();
        // In the order of the table, so that warnings are too.
        for setting in KEYS.iter().filter_map(|key| self.values.get(key.path)) {
            match setting.key.effect {
                Effect::Replaced(by) => {
                    let message = format!("`{}` has no effect: {by}", setting.key.path);
                    warnings.push(Warning { key: setting.key.path, message });
                }
                Effect::InEffect | Effect::NotYet(_) => {
                    let section = sections.entry(setting.key.section()).or_default();
                    section.insert(setting.key.name().to_owned(), setting.value.clone());
                }
            }
        }
        let tree =
            sections.into_iter().map(|(name, section)| (name.to_owned(), Json::Object(section))).collect();
        let config: Config = match serde_json::from_value(Json::Object(tree)) {
            Ok(config) => config,
            Err(error) => unreachable!("every value was checked by its kind, yet serde refuses one: {error}"),
        };
        // How keys relate is judged only once each is right: a mistyped `enable_tls` is not a missing one.
        if self.problems.is_empty() {
            let relations = config.problems().into_iter();
            self.problems = relations.map(|problem| self.located(problem)).collect();
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        let config = config.resolved();
        warnings.extend(config.warnings());
        Ok(Loaded { config, warnings })
    }

    fn located(&self, problem: Problem) -> Problem {
        match self.values.get(problem.key.as_str()) {
            Some(setting) => Problem { origin: setting.origin.clone(), ..problem },
            None => problem,
        }
    }
}
