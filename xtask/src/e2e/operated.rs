//! The operator on a real Kubernetes: the README's two lines install it and a cluster, and then, under the load, all that is done to clusters on days good and bad.
//! [`resource`] is the cluster as its resource tells of it, [`steps`] what is done under load, [`mistakes`] what people ask for that cannot be. This module is the order.

mod mistakes;
mod resource;
mod steps;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::stage::{LOAD_IMAGE, Stage, Target};
use crate::image::{self, ImageOptions};
use crate::k8s::{Access, DEFAULT_NAME, Layout, give_image};
use crate::steps::{run as run_program, step, workspace_root};
use resource::Resource;

/// As in the README's lines.
const CLUSTER: &str = "orders";
const NAMESPACE: &str = "default";
const OPERATOR_RELEASE: &str = "debros-operator";
const OPERATOR_NAMESPACE: &str = "debros-system";
/// How the README's lines begin.
const INSTALL: &str = "helm install ";
/// Pods of the cluster are on all machines; the load is where no step goes.
const CALM_NODE: &str = "node-1";
/// From nothing to a cluster that serves.
const AVAILABLE_WITHIN: Duration = Duration::from_secs(180);
const SHELL_IMAGE: &str = "debros.local/busybox:1";

/// Options of `e2e k8s`.
#[derive(Args)]
pub(crate) struct OperatedOptions {
    /// The cluster; `cargo xtask k8s up` makes it.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Images without optimisation: faster to build, slower to run.
    #[arg(long)]
    debug: bool,
    /// Only the steps under load whose names contain this, on what an earlier run with --keep has left.
    #[arg(long)]
    only: Option<String>,
    /// Leave the releases as they are in the end, for who looks around.
    #[arg(long)]
    keep: bool,
}

/// Where all of it happens.
pub(super) struct Scene {
    layout: Layout,
    access: Access,
    resource: Resource,
}

/// Runs the steps and prints the table.
pub(crate) fn run(options: &OperatedOptions) -> Result<()> {
    let layout = Layout::new(&options.name)?;
    let access = Access::open(&layout)?;
    if matches!(access, Access::Existing) {
        bail!(
            "KUBECONFIG names a cluster that was not made here: images cannot be given to it, and its machines cannot be frozen; unset it, and \
             `cargo xtask k8s up` makes one"
        );
    }
    let resource = Resource::new(access.clone(), NAMESPACE, CLUSTER);
    let scene = Scene { layout, access, resource };
    let next = format!("{}-next", env!("CARGO_PKG_VERSION"));
    step("images", || scene.give_images(options, &next))?;
    let outcome = match &options.only {
        Some(_) => scene.under_load(&next, options.only.as_deref()),
        None => {
            scene.install().and_then(|()| scene.under_load(&next, None)).and_then(|()| mistakes::run(&scene))
        }
    };
    if outcome.is_err() {
        println!("\n{}", scene.resource.tell());
    }
    if !options.keep {
        step("clean", || scene.remove())?;
    }
    outcome
}

impl Scene {
    /// The images as they are, and once more under the tag that the cluster is rolled to.
    fn give_images(&self, options: &OperatedOptions, next: &str) -> Result<()> {
        for tag in [env!("CARGO_PKG_VERSION"), next] {
            for file in image::run(&ImageOptions::tagged(tag, options.debug))? {
                give_image(&self.layout, &file)?;
                if tag == next {
                    fs::remove_file(&file)?;
                }
            }
        }
        let file = image::folder().join("e2e-load.image");
        image::of_program(LOAD_IMAGE, &std::env::current_exe()?, &file)?;
        give_image(&self.layout, &file)
    }

    /// The README's very lines; then the cluster is Available, `helm test` passes, and a client of the HTTP API is served.
    fn install(&self) -> Result<()> {
        // Pods that are not restricted would be refused.
        self.kubectl(&[
            "label",
            "namespace",
            NAMESPACE,
            "pod-security.kubernetes.io/enforce=restricted",
            "--overwrite",
        ])?;
        for line in install_lines(&fs::read_to_string(workspace_root().join("README.md"))?)? {
            step(&line, || {
                let words = line.split_whitespace().skip(1).collect::<Vec<_>>();
                let mut helm = self.access.helm()?;
                helm.args(words).current_dir(workspace_root());
                run_program(helm)
            })?;
        }
        step("the cluster is Available", || {
            self.resource.wait(AVAILABLE_WITHIN, "all nodes", |status| status.is_settled())
        })?;
        step("helm test", || {
            let mut helm = self.access.helm()?;
            helm.args(["test", CLUSTER, "--namespace", NAMESPACE, "--logs"]);
            run_program(helm)
        })?;
        step("a client of the HTTP API", || self.over_http())
    }

    /// A pod that writes a row and reads it, by the path that the notes of the chart show.
    fn over_http(&self) -> Result<()> {
        // By number: a program that is linked statically looks no names up.
        let address = self.kubectl(&["get", "service", CLUSTER, "--output=jsonpath={.spec.clusterIP}"])?;
        let url = format!("http://{address}:5001/db");
        let post = |path: &str, sql: &str| {
            format!(
                "wget -q -O - --header 'Content-Type: application/json' --post-data '[\"{sql}\"]' '{url}/{path}'"
            )
        };
        let script = [
            post("execute", "CREATE TABLE IF NOT EXISTS over_http (value TEXT)"),
            post("execute", "INSERT INTO over_http VALUES (42)"),
            post("query", "SELECT count(*), value FROM over_http"),
        ]
        .join(" && ");
        let security = serde_json::json!({
            "runAsNonRoot": true, "runAsUser": image::USER, "seccompProfile": {"type": "RuntimeDefault"},
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        });
        let overrides = serde_json::json!({"spec": {"containers": [{
            "name": "over-http", "image": SHELL_IMAGE, "command": ["/bin/busybox", "sh", "-c", script],
            "securityContext": security,
        }]}});
        let image = format!("--image={SHELL_IMAGE}");
        let overrides = format!("--overrides={overrides}");
        self.kubectl(&["run", "over-http", "--restart=Never", &image, &overrides])?;
        let ended = self.kubectl(&[
            "wait",
            "pod/over-http",
            "--for=jsonpath={.status.phase}=Succeeded",
            "--timeout=60s",
        ]);
        let said = self.kubectl(&["logs", "over-http"])?;
        self.kubectl(&["delete", "pod", "over-http", "--wait=false"])?;
        ended.with_context(|| format!("the client said: {said}"))?;
        println!("    {}", said.trim());
        ensure!(said.contains("\"42\""), "the row is not read back");
        Ok(())
    }

    fn under_load(&self, next: &str, only: Option<&str>) -> Result<()> {
        let address = format!("/dns4/{CLUSTER}.{NAMESPACE}.svc.cluster.local/tcp/4001");
        let secret = format!("{CLUSTER}-cluster-secret");
        let target =
            Target { namespace: NAMESPACE, address: &address, secret: Some(&secret), node: CALM_NODE };
        let mut stage = step("load", || Stage::start(self.access.clone(), &target))?.only(only);
        let outcome = steps::run(self, &mut stage, next);
        // What was measured and what was lost is told of a run that failed, too.
        let told = stage.finish();
        outcome.and(told)
    }

    fn remove(&self) -> Result<()> {
        let remove = |release: &str, namespace: &str| {
            let mut helm = self.access.helm()?;
            helm.args(["uninstall", release, "--namespace", namespace, "--ignore-not-found", "--wait"]);
            run_program(helm)
        };
        remove(CLUSTER, NAMESPACE)?;
        remove(OPERATOR_RELEASE, OPERATOR_NAMESPACE)?;
        self.kubectl(&["delete", "persistentvolumeclaims", "--selector", &Resource::selector(CLUSTER)])?;
        self.kubectl(&[
            "delete",
            "customresourcedefinition",
            "debrosclusters.debros.network",
            "--ignore-not-found",
        ])?;
        self.kubectl(&["label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce-"])?;
        Ok(())
    }

    /// In the cluster's namespace.
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.access.answer(&[&["--namespace", NAMESPACE], arguments].concat())
    }

    /// As when a machine dies: nothing is handed over.
    fn kill_operator(&self) -> Result<()> {
        let selector = format!("--selector=app.kubernetes.io/instance={OPERATOR_RELEASE}");
        self.access.answer(&[
            "delete",
            "pods",
            "--namespace",
            OPERATOR_NAMESPACE,
            &selector,
            "--grace-period=0",
            "--force",
            "--wait=false",
        ])?;
        Ok(())
    }
}

/// The lines by which people install.
fn install_lines(readme: &str) -> Result<Vec<String>> {
    let lines = readme.lines().map(str::trim).filter(|line| line.starts_with(INSTALL));
    let lines = lines.map(str::to_owned).collect::<Vec<_>>();
    ensure!(
        lines.len() == 2,
        "README.md has {} lines that begin with `{INSTALL}` instead of two",
        lines.len()
    );
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::{CLUSTER, OPERATOR_NAMESPACE, OPERATOR_RELEASE, install_lines};

    #[test]
    fn the_readme_installs_what_is_tested() {
        let readme = include_str!("../../../README.md");
        let lines = install_lines(readme).unwrap();
        assert!(lines[0].starts_with(&format!("helm install {OPERATOR_RELEASE} charts/debros-operator")));
        assert!(lines[0].contains(OPERATOR_NAMESPACE));
        assert_eq!(lines[1], format!("helm install {CLUSTER} charts/debros-cluster"));
        assert!(install_lines("helm install one").unwrap_err().to_string().contains("1 lines"));
    }
}
