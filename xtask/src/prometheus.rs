//! Prometheus as a program: where it is found or how it gets here, the configuration that scrapes a [`Cluster`], a running
//! server and its HTTP API. It does not know what is asked of it.
//!
//! Where there is none, it is Debian's package ([`crate::debian`]).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, free_ports};
use crate::debian;
use crate::rules::{ALERTS_PATH, RULES_PATH};
use crate::server::Server;
use crate::steps::{run, target_folder, workspace_root};

/// Debian's package with both programs.
const PACKAGE: &str = "prometheus";
/// It is ready in less than a second; this is for a machine at its limit.
const READY_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where the programs are.
pub(crate) struct Programs {
    prometheus: PathBuf,
    promtool: PathBuf,
}

impl Programs {
    /// Those on the PATH, or Debian's package unpacked below `target/`. `None`, and it is said why, where neither can be had.
    pub(crate) fn set_up() -> Result<Option<Self>> {
        if let Some(programs) = Self::on_path() {
            println!("on the PATH: {} and {}", programs.prometheus.display(), programs.promtool.display());
            return Ok(Some(programs));
        }
        let folder = target_folder().join("prometheus");
        let programs = Self::in_folder(&folder.join("usr/bin"));
        if programs.is_none() {
            if !debian::available() {
                println!(
                    "skipped: prometheus and promtool are not on the PATH, and without apt-get Debian's package cannot be had"
                );
                return Ok(None);
            }
            println!("Debian's package {PACKAGE} goes into {}; nothing is installed", folder.display());
            debian::unpack_packages(&[PACKAGE], &folder).context(
                "cannot get Prometheus: are Debian's packages reachable? prometheus and promtool on the PATH do as well",
            )?;
        }
        let programs = Self::in_folder(&folder.join("usr/bin"));
        let programs =
            programs.with_context(|| format!("the package {PACKAGE} has not the programs it had"))?;
        println!("in the folder of the build: {}", programs.prometheus.display());
        Ok(Some(programs))
    }

    fn on_path() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find_map(|folder| Self::in_folder(&folder))
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let programs = Self { prometheus: folder.join("prometheus"), promtool: folder.join("promtool") };
        (programs.prometheus.is_file() && programs.promtool.is_file()).then_some(programs)
    }

    /// Runs `promtool`, in the folder of the workspace.
    pub(crate) fn promtool(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.promtool);
        command.args(arguments).current_dir(workspace_root());
        run(command)
    }
}

#[derive(Serialize)]
struct Configuration {
    global: Global,
    rule_files: Vec<String>,
    scrape_configs: Vec<Job>,
}

#[derive(Serialize)]
struct Global {
    scrape_interval: String,
    scrape_timeout: String,
    evaluation_interval: String,
}

#[derive(Serialize)]
struct Job {
    job_name: &'static str,
    static_configs: Vec<Targets>,
}

#[derive(Serialize)]
struct Targets {
    targets: Vec<String>,
    labels: Labels,
}

/// What the rules and dashboards tell nodes apart by.
#[derive(Serialize)]
struct Labels {
    cluster: String,
    node: String,
}

/// A configuration that scrapes these nodes each so many seconds and evaluates the shipped rules and alerts as often.
pub(crate) fn scrape_config(cluster: &Cluster, name: &str, every_seconds: u32) -> Result<String> {
    let rules = [RULES_PATH, ALERTS_PATH].map(|path| workspace_root().join(path));
    scrape_config_with(cluster, name, every_seconds, &rules)
}

/// The same with these files of rules.
pub(crate) fn scrape_config_with(
    cluster: &Cluster,
    name: &str,
    every_seconds: u32,
    rules: &[PathBuf],
) -> Result<String> {
    let every = format!("{every_seconds}s");
    let static_configs = cluster.nodes().iter().map(|node| Targets {
        targets: vec![format!("127.0.0.1:{}", node.admin_port())],
        labels: Labels { cluster: name.to_owned(), node: node.name().to_owned() },
    });
    let configuration = Configuration {
        global: Global {
            scrape_interval: every.clone(),
            scrape_timeout: every.clone(),
            evaluation_interval: every,
        },
        rule_files: rules.iter().map(|path| path.display().to_string()).collect(),
        scrape_configs: vec![Job { job_name: "debros", static_configs: static_configs.collect() }],
    };
    Ok(serde_saphyr::to_string(&configuration)?)
}

/// A running Prometheus on loopback.
pub(crate) struct Prometheus {
    server: Server,
    port: u16,
}

impl Prometheus {
    /// Starts it and waits until it answers; on a folder that it had before it knows what it knew.
    pub(crate) async fn start(programs: &Programs, folder: &Path, configuration: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let file = folder.join("prometheus.yaml");
        fs::write(&file, configuration)?;
        programs.promtool(&["check", "config", &file.to_string_lossy()])?;
        let ports = free_ports(1)?;
        let port = *ports.first().context("no free port on loopback")?;
        let option = |name: &str, value: &str| OsString::from(format!("--{name}={value}"));
        let arguments = vec![
            option("config.file", &file.to_string_lossy()),
            option("storage.tsdb.path", &folder.join("data").to_string_lossy()),
            option("web.listen-address", &format!("127.0.0.1:{port}")),
            option("enable-feature", "exemplar-storage"),
        ];
        let log = folder.join("prometheus.log");
        let server = Server::new("prometheus".into(), programs.prometheus.clone(), arguments, log);
        let mut prometheus = Self { server, port };
        prometheus.server.start()?;
        prometheus.ready().await?;
        Ok(prometheus)
    }

    async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !get(self.port, "/-/ready").await.is_ok_and(|(status, _)| status == 200) {
            if let Some(status) = self.server.ended() {
                bail!("prometheus ended with {status}; {}", self.server.log_end());
            }
            if start.elapsed() > READY_WITHIN {
                bail!("prometheus is not ready after {READY_WITHIN:?}; {}", self.server.log_end());
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Where people look at it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What an expression gives now.
    pub(crate) async fn evaluate(&self, expr: &str) -> Result<Vec<Sample>> {
        self.query(&format!("query={}", encoded(expr))).await
    }

    /// What it gives at a time, in seconds since 1970. In the future it gives what it will if nothing happens any more.
    pub(crate) async fn evaluate_at(&self, expr: &str, at_seconds: u64) -> Result<Vec<Sample>> {
        self.query(&format!("query={}&time={at_seconds}", encoded(expr))).await
    }

    async fn query(&self, query: &str) -> Result<Vec<Sample>> {
        let (_, body) = get(self.port, &format!("/api/v1/query?{query}")).await?;
        let answer: Answer = serde_json::from_str(&body).context("the API's answer is not the known one")?;
        match answer {
            Answer { data: Some(data), .. } => data.samples(),
            Answer { error, .. } => bail!("{}", error.unwrap_or_else(|| "an error without words".into())),
        }
    }

    /// Rules that failed when they were last evaluated, with what was wrong.
    pub(crate) async fn failing_rules(&self) -> Result<Vec<String>> {
        let (_, body) = get(self.port, "/api/v1/rules").await?;
        let answer: serde_json::Value = serde_json::from_str(&body)?;
        let groups = answer["data"]["groups"].as_array().context("the API tells no groups of rules")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
        let failing = rules.filter(|rule| rule["health"] == "err");
        Ok(failing.map(|rule| format!("{}: {}", rule["name"], rule["lastError"])).collect())
    }

    /// Asks it to end, and waits.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.server.terminate();
        self.server.stopped().await
    }
}

/// One result of an expression.
pub(crate) struct Sample {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

#[derive(Deserialize)]
struct Answer {
    data: Option<Data>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Element>),
    Scalar((f64, String)),
}

#[derive(Deserialize)]
struct Element {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

impl Data {
    fn samples(self) -> Result<Vec<Sample>> {
        let values: Vec<(BTreeMap<String, String>, String)> = match self {
            Self::Vector(elements) => {
                elements.into_iter().map(|element| (element.metric, element.value.1)).collect()
            }
            Self::Scalar((_, value)) => vec![(BTreeMap::new(), value)],
        };
        let parse = |(labels, value): (BTreeMap<String, String>, String)| {
            // Prometheus writes +Inf, -Inf and NaN, which Rust reads too.
            let value = value.parse().with_context(|| format!("`{value}` is no number"))?;
            Ok(Sample { labels, value })
        };
        values.into_iter().map(parse).collect()
    }
}

/// GET by HTTP/1.0: the answer ends where the connection does.
async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let work = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(ANSWER_WITHIN, work).await.context("Prometheus does not answer")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer is not HTTP")?, body.to_owned()))
}

/// As a value in the query of an address.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::{Answer, encoded};

    #[test]
    fn expressions_travel_in_addresses() {
        assert_eq!(encoded("rate(x{a=\"b\"}[5m])+1"), "rate%28x%7Ba%3D%22b%22%7D%5B5m%5D%29%2B1");
    }

    #[test]
    fn vectors_scalars_and_errors_of_the_api_are_read() {
        let read = |body| serde_json::from_str::<Answer>(body).unwrap();
        let vector = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1.5,"NaN"]}]}}"#;
        assert!(read(vector).data.unwrap().samples().unwrap()[0].value.is_nan());
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1.5,"+Inf"]}}"#;
        assert_eq!(read(scalar).data.unwrap().samples().unwrap()[0].value, f64::INFINITY);
        let error = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        assert_eq!(read(error).error.unwrap(), "parse error");
    }
}
