//! Takes an object back from whoever edited it. Server-side apply leaves fields alone that others own: a container that
//! somebody added to a template would stay for ever. So all of it is made ours first, and then what is not wanted goes
//! with the next apply, as any field of ours does that we no longer name.

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::build::Kind;
use crate::names::FIELD_MANAGER;

/// What an object says, apart from who it is and how it is.
const CONTENTS: [&str; 2] = ["spec", "data"];

/// Whether somebody else owns a part of what the object says. Whoever scales or reports does so by a subresource.
pub(super) fn is_edited(object: &DynamicObject) -> bool {
    let managers = object.metadata.managed_fields.iter().flatten();
    let mut others = managers.filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    others.any(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        let owns = |content: &&str| fields.is_some_and(|fields| !fields[format!("f:{content}")].is_null());
        entry.subresource.is_none() && CONTENTS.iter().any(owns)
    })
}

/// Makes every field ours, and ours alone. Gives the version of the object that came of it.
pub(super) async fn take_back(
    api: &Api<DynamicObject>,
    kind: Kind,
    object: &DynamicObject,
) -> Result<Option<String>, kube::Error> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut whole = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.as_str(),
        "metadata": {
            "name": name,
            "namespace": object.metadata.namespace,
            "uid": object.metadata.uid,
            "labels": object.metadata.labels,
            "ownerReferences": object.metadata.owner_references,
        },
    });
    for content in CONTENTS {
        if let Some(value) = object.data.get(content) {
            whole[content] = value.clone();
        }
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let ours = api.patch(name, &params, &Patch::Apply(&whole)).await?;
    let entries: Vec<Value> = ours
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) || entry.subresource.is_some())
        .map(|entry| serde_json::to_value(entry).unwrap_or_default())
        .collect();
    let alone = json!({ "metadata": {
        "managedFields": entries,
        "uid": ours.metadata.uid,
        "resourceVersion": ours.metadata.resource_version,
    } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    Ok(api.patch(name, &params, &Patch::Merge(&alone)).await?.metadata.resource_version)
}
