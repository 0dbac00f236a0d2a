//! The rights of the operator, as its chart gives them: the tests' operators act under them and no others, so that a call
//! that the chart forgot is refused here and not in somebody's cluster.

use std::path::Path;
use std::process::{Command, Stdio};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use serde_json::json;

/// The operator's namespace.
const NAMESPACE: &str = "operator-rights";
/// The release, and with it the ServiceAccount.
const RELEASE: &str = "debros-operator";
/// The variable that names another helm than that on the PATH.
const HELM: &str = "HELM";

/// Gives the operator's account its rights.
pub(crate) async fn grant(client: &Client) {
    let made = serde_json::from_value::<Namespace>(json!({ "metadata": { "name": NAMESPACE } }));
    // It is there already when another test was first.
    let _ = Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &made.expect("a namespace"))
        .await;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/debros-operator");
    let helm = std::env::var(HELM).unwrap_or_else(|_| "helm".to_owned());
    let mut rendered = Command::new(helm)
        .args(["template", RELEASE, "--namespace", NAMESPACE, "--show-only", "templates/rbac.yaml"])
        .arg(chart)
        .stdout(Stdio::piped())
        .spawn()
        .expect("helm is there; HELM names another one");
    let applied = crate::messages::kubectl()
        .args(["apply", "-f", "-"])
        .stdin(rendered.stdout.take().expect("it is piped"))
        .output()
        .expect("kubectl ends");
    assert!(rendered.wait().expect("helm ends").success(), "the chart is rendered");
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
}

/// The same API server, as the operator may use it.
pub(crate) fn restricted(mut config: Config) -> Config {
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{NAMESPACE}:{RELEASE}"));
    config
}
