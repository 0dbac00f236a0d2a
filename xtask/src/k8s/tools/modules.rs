//! Which Go modules there are, the version of each, and the text that pins them. Changing a version here is half of an update; the
//! other half is `cargo xtask k8s tools --refresh`, which resolves the module again and writes its `go.mod` and `go.sum`.

use std::fmt::Write as _;

use crate::digest::Digest;

/// The last minor that runs on containerd 1.6 (Debian 12) and, when it is told to, on cgroup v1.
const KUBERNETES_VERSION: &str = "1.35.4";

/// A program that is built here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    Kubectl,
    Coredns,
    LocalPathProvisioner,
    Pause,
    Helm,
}

impl Program {
    /// The file's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Coredns => "coredns",
            Self::LocalPathProvisioner => "local-path-provisioner",
            Self::Pause => "pause",
            Self::Helm => "helm",
        }
    }
}

/// A program and the package of its module that it is built from.
pub(super) struct Built {
    pub(super) program: Program,
    pub(super) package: &'static str,
}

/// A Go module of ours that does nothing but require one of others.
pub(super) struct Module {
    /// Of its folder in `xtask/k8s/modules`.
    pub(super) name: &'static str,
    /// The module that it is about; empty for our own program.
    pub(super) requires: &'static str,
    pub(super) version: &'static str,
    /// Go's language version, the least that the module asks for.
    go: &'static str,
    pub(super) programs: &'static [Built],
    pub(super) go_mod: &'static str,
    pub(super) go_sum: &'static str,
    /// A source of ours; only where the program is ours.
    pub(super) source: Option<&'static str>,
    /// Variables that the linker sets, as `package.name=value`.
    pub(super) linked: &'static [&'static str],
    /// Modules that are replaced by their published versions, and that version.
    staging: Option<(&'static [&'static str], &'static str)>,
}

const fn built(program: Program, package: &'static str) -> Built {
    Built { program, package }
}

/// What is in `xtask/k8s/modules`.
pub(super) const MODULES: &[Module] = &[
    Module {
        name: "kubernetes",
        requires: "k8s.io/kubernetes",
        version: KUBERNETES_VERSION,
        go: "1.25.0",
        programs: &[
            built(Program::KubeApiserver, "k8s.io/kubernetes/cmd/kube-apiserver"),
            built(Program::KubeControllerManager, "k8s.io/kubernetes/cmd/kube-controller-manager"),
            built(Program::KubeScheduler, "k8s.io/kubernetes/cmd/kube-scheduler"),
            built(Program::Kubelet, "k8s.io/kubernetes/cmd/kubelet"),
            built(Program::KubeProxy, "k8s.io/kubernetes/cmd/kube-proxy"),
            built(Program::Kubectl, "k8s.io/kubernetes/cmd/kubectl"),
        ],
        go_mod: include_str!("../../../k8s/modules/kubernetes/go.mod"),
        go_sum: include_str!("../../../k8s/modules/kubernetes/go.sum"),
        source: None,
        // A kubelet without a version is refused by the API server.
        linked: &[
            "k8s.io/component-base/version.gitVersion=v1.35.4",
            "k8s.io/component-base/version.gitMajor=1",
            "k8s.io/component-base/version.gitMinor=35",
        ],
        // Kubernetes replaces these by folders of its own repository, which only holds there.
        staging: Some((STAGING, "v0.35.4")),
    },
    Module {
        name: "etcd",
        requires: "go.etcd.io/etcd/server/v3",
        version: "3.6.5",
        go: "1.25.0",
        programs: &[built(Program::Etcd, "go.etcd.io/etcd/server/v3")],
        go_mod: include_str!("../../../k8s/modules/etcd/go.mod"),
        go_sum: include_str!("../../../k8s/modules/etcd/go.sum"),
        source: None,
        linked: &[],
        staging: None,
    },
    Module {
        name: "helm",
        requires: "helm.sh/helm/v4",
        version: "4.3.1",
        go: "1.26.0",
        programs: &[built(Program::Helm, "helm.sh/helm/v4/cmd/helm")],
        go_mod: include_str!("../../../k8s/modules/helm/go.mod"),
        go_sum: include_str!("../../../k8s/modules/helm/go.sum"),
        source: None,
        linked: &["helm.sh/helm/v4/internal/version.version=v4.3.1"],
        staging: None,
    },
    Module {
        name: "coredns",
        requires: "github.com/coredns/coredns",
        version: "1.13.1",
        go: "1.25.0",
        programs: &[built(Program::Coredns, "github.com/coredns/coredns")],
        go_mod: include_str!("../../../k8s/modules/coredns/go.mod"),
        go_sum: include_str!("../../../k8s/modules/coredns/go.sum"),
        source: None,
        linked: &[],
        staging: None,
    },
    Module {
        name: "local-path",
        requires: "github.com/rancher/local-path-provisioner",
        version: "0.0.30",
        go: "1.25.0",
        programs: &[built(Program::LocalPathProvisioner, "github.com/rancher/local-path-provisioner")],
        go_mod: include_str!("../../../k8s/modules/local-path/go.mod"),
        go_sum: include_str!("../../../k8s/modules/local-path/go.sum"),
        source: None,
        linked: &[],
        staging: None,
    },
    Module {
        name: "pause",
        requires: "",
        version: "1",
        go: "1.25.0",
        programs: &[built(Program::Pause, ".")],
        go_mod: include_str!("../../../k8s/modules/pause/go.mod"),
        go_sum: include_str!("../../../k8s/modules/pause/go.sum"),
        source: Some(include_str!("../../../k8s/modules/pause/main.go")),
        linked: &[],
        staging: None,
    },
];

const STAGING: &[&str] = &[
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
];

impl Module {
    /// True for a module of others, whose pins are resolved.
    pub(super) fn is_foreign(&self) -> bool {
        !self.requires.is_empty()
    }

    /// Holds the version and a digest of everything that decides what is built.
    pub(super) fn folder_name(&self) -> String {
        let mut digest = Digest::new();
        for text in [self.go_mod, self.go_sum, self.source.unwrap_or_default(), std::env::consts::ARCH] {
            digest.update(text.as_bytes());
        }
        for text in self.programs.iter().map(|built| built.package).chain(self.linked.iter().copied()) {
            digest.update(text.as_bytes());
        }
        format!("{}-{}-{}", self.name, self.version, digest.short())
    }

    /// What the linker is told.
    pub(super) fn link_flags(&self) -> String {
        self.linked.iter().fold("-s -w".to_owned(), |flags, variable| format!("{flags} -X {variable}"))
    }

    /// The part of its `go.mod` that people decide; Go adds the rest when it resolves it.
    pub(super) fn manifest(&self) -> String {
        let mut text = format!("module debros.network/tools/{}\n\ngo {}\n", self.name, self.go);
        if let Some((modules, version)) = self.staging {
            // What the replaced modules would say about themselves is not read.
            let _ =
                write!(text, "\ngodebug default=go1.25\n\nrequire {} v{}\n\n", self.requires, self.version);
            for module in modules {
                let _ = writeln!(text, "replace k8s.io/{module} => k8s.io/{module} {version}");
            }
        } else {
            let _ = write!(text, "\nrequire {} v{}\n", self.requires, self.version);
        }
        text
    }

    /// A source that is never built and imports what is, so that Go resolves for it.
    pub(super) fn imports(&self) -> String {
        let imports =
            self.programs.iter().map(|built| format!("\t_ \"{}\"\n", built.package)).collect::<String>();
        format!("//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
    }
}

#[cfg(test)]
mod tests {
    use super::{KUBERNETES_VERSION, MODULES};

    #[test]
    fn the_pins_are_those_of_the_versions_named_here() {
        for module in MODULES.iter().filter(|module| module.is_foreign()) {
            let line = format!("require {} v{}\n", module.requires, module.version);
            assert!(module.go_mod.contains(&line), "{}: run `cargo xtask k8s tools --refresh`", module.name);
            let sum = format!("{} v{} h1:", module.requires, module.version);
            assert!(module.go_sum.contains(&sum), "{}: run `cargo xtask k8s tools --refresh`", module.name);
        }
    }

    #[test]
    fn every_version_that_is_linked_in_is_the_module_s() {
        let kubernetes = &MODULES[0];
        assert_eq!(kubernetes.version, KUBERNETES_VERSION);
        let minor = KUBERNETES_VERSION.split('.').nth(1).unwrap();
        assert!(kubernetes.linked[0].ends_with(&format!("gitVersion=v{KUBERNETES_VERSION}")));
        assert!(kubernetes.linked[2].ends_with(&format!("gitMinor={minor}")));
        let (modules, version) = kubernetes.staging.unwrap();
        assert_eq!(version, format!("v0.{}", KUBERNETES_VERSION.strip_prefix("1.").unwrap()));
        for module in modules {
            let line = format!("replace k8s.io/{module} => k8s.io/{module} {version}\n");
            assert!(kubernetes.go_mod.contains(&line), "{module}");
        }
    }

    #[test]
    fn the_same_pins_have_the_same_folder_and_each_module_its_own() {
        let names = MODULES.iter().map(super::Module::folder_name).collect::<Vec<_>>();
        assert_eq!(names, MODULES.iter().map(super::Module::folder_name).collect::<Vec<_>>());
        assert!(
            names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1),
            "{names:?}"
        );
    }
}
