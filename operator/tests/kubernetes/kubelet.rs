//! Stands in for the StatefulSet controller, the volumes' provisioner and the kubelets of one namespace: makes and ends
//! pods and claims as they do, and starts and stops the nodes in memory with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use operator::names::Names;
use operator::observed::PodId;
use serde_json::json;

use crate::support::Cluster;

/// Kubernetes, as far as pods go.
pub(crate) struct Kubelet {
    client: Client,
    namespace: String,
    cluster: String,
    nodes: Arc<Mutex<Cluster>>,
    ready: BTreeMap<String, bool>,
}

impl Kubelet {
    pub(crate) fn new(client: Client, names: &Names<'_>, nodes: Arc<Mutex<Cluster>>) -> Self {
        let (namespace, cluster) = (names.namespace.to_owned(), names.cluster.to_owned());
        Self { client, namespace, cluster, nodes, ready: BTreeMap::new() }
    }

    fn names(&self) -> Names<'_> {
        Names { namespace: &self.namespace, cluster: &self.cluster }
    }

    /// One round of everything.
    pub(crate) async fn work(&mut self) {
        let sets = Api::<StatefulSet>::namespaced(self.client.clone(), &self.namespace);
        let sets = sets.list(&ListParams::default()).await.expect("StatefulSets are listed");
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let there = pods.list(&ListParams::default()).await.expect("pods are listed").items;
        self.end_surplus(&pods, &sets.items, &there).await;
        for set in &sets {
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
            for ordinal in 0..replicas {
                let name = format!("{}-{ordinal}", set.name_any());
                match there.iter().find(|pod| pod.name_any() == name) {
                    None => self.make(&pods, set, &name).await,
                    Some(pod) => self.run(&pods, pod).await,
                }
            }
        }
        self.stop_gone(&there);
    }

    async fn end_surplus(&self, pods: &Api<Pod>, sets: &[StatefulSet], there: &[Pod]) {
        for pod in there {
            let set = sets.iter().find(|set| {
                pod.owner_references().iter().any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
            });
            let replicas = set.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or_default();
            let Some((role, ordinal)) = self.names().parse_pod(&pod.name_any()) else { continue };
            if ordinal < replicas {
                continue;
            }
            let _ = pods.delete(&pod.name_any(), &DeleteParams::default()).await;
            // The policy is Delete.
            let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &self.namespace);
            let claim = self.names().claim(role, ordinal);
            let _ = claims
                .patch(
                    &claim,
                    &PatchParams::default(),
                    &Patch::Merge(json!({ "metadata": { "finalizers": null } })),
                )
                .await;
            let _ = claims.delete(&claim, &DeleteParams::default()).await;
            let mut nodes = self.nodes.lock().expect("not poisoned");
            nodes.stop(PodId { role, ordinal });
            nodes.volumes.remove(&PodId { role, ordinal });
        }
    }

    async fn make(&self, pods: &Api<Pod>, set: &StatefulSet, name: &str) {
        let Some(spec) = &set.spec else { return };
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &self.namespace);
        for template in spec.volume_claim_templates.iter().flatten() {
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{}-{name}", template.name_any()));
            claim.status = None;
            // It is there already when the pod was there before.
            if claims.create(&PostParams::default(), &claim).await.is_ok() {
                let bound = json!({ "status": { "phase": "Bound" } });
                let claim = claim.name_any();
                claims
                    .patch_status(&claim, &PatchParams::default(), &Patch::Merge(bound))
                    .await
                    .expect("a claim is bound");
            }
        }
        let template = spec.template.clone();
        let mut pod =
            Pod { metadata: template.metadata.unwrap_or_default(), spec: template.spec, status: None };
        for template in spec.volume_claim_templates.iter().flatten() {
            let claim_name = format!("{}-{name}", template.name_any());
            let claim = PersistentVolumeClaimVolumeSource { claim_name, read_only: None };
            let volume = Volume {
                name: template.name_any(),
                persistent_volume_claim: Some(claim),
                ..Volume::default()
            };
            pod.spec.get_or_insert_default().volumes.get_or_insert_default().push(volume);
        }
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.owner_references = Some(vec![set_reference(set)]);
        pods.create(&PostParams::default(), &pod).await.expect("a pod is made");
    }

    /// A pod has an address at its first round, and is ready when its node is a member and its groups have leaders.
    async fn run(&mut self, pods: &Api<Pod>, pod: &Pod) {
        let name = pod.name_any();
        let Some((role, ordinal)) = self.names().parse_pod(&name) else { return };
        let ready = {
            let mut nodes = self.nodes.lock().expect("not poisoned");
            nodes.start(PodId { role, ordinal });
            let answers = nodes.answers();
            let node = answers.nodes.get(&PodId { role, ordinal });
            node.is_some_and(|node| {
                node.node_id.is_some() && node.groups.iter().all(|group| group.leader != 0)
            })
        };
        let uid = pod.uid().unwrap_or_default();
        if self.ready.get(&uid) == Some(&ready) {
            return;
        }
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{ "ip": "10.0.0.1" }],
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
            "containerStatuses": [{
                "name": "debros-node", "image": "x", "imageID": "x", "ready": ready, "restartCount": 0,
                "state": { "running": {} },
            }],
        } });
        if pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.is_ok() {
            self.ready.insert(uid, ready);
        }
    }

    fn stop_gone(&self, there: &[Pod]) {
        let mut nodes = self.nodes.lock().expect("not poisoned");
        let alive =
            |id: &PodId| there.iter().any(|pod| pod.name_any() == self.names().pod(id.role, id.ordinal));
        let gone: Vec<PodId> = nodes.running.iter().copied().filter(|id| !alive(id)).collect();
        for id in gone {
            nodes.stop(id);
        }
    }
}

fn set_reference(set: &StatefulSet) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "StatefulSet".to_owned(),
        name: set.name_any(),
        uid: set.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
