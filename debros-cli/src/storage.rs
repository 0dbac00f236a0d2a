//! What each command of `debros storage` does, on any storage. Long ones are `transfer` and `watch`.

pub(crate) mod transfer;
mod watch;

use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use debros_sdk::{
    Cursor, DeleteOptions, Entry, Error, GetOptions, ListOptions, PutOptions, STORAGE_PAGE_KEYS_MAX, Storage,
    check,
};
use serde_json::{Value as Json, json};

use crate::arguments::Global;
use crate::arguments::storage::{List, Put, StorageCommand};
use crate::commands::print;
use crate::failure::{Exit, Failure};
use crate::format::Format;
use crate::{json, table};

/// A command whose mistakes were told, and whose value was read.
pub(crate) struct Task {
    command: StorageCommand,
    value: Bytes,
}

/// Does what needs no node.
pub(crate) fn prepare(command: StorageCommand) -> Result<Task, Failure> {
    let checked = match &command {
        StorageCommand::Get { key, .. }
        | StorageCommand::Delete { key, .. }
        | StorageCommand::Exists { key, .. }
        | StorageCommand::Put(Put { key, .. }) => check::storage_key(key),
        StorageCommand::List(List { prefix, .. })
        | StorageCommand::Watch { prefix, .. }
        | StorageCommand::Export { prefix, .. } => check::storage_prefix(prefix),
        StorageCommand::Import { .. } => Ok(()),
    };
    checked.map_err(|error| Failure::usage(error.to_string(), "`debros help storage` has examples"))?;
    if let StorageCommand::Watch { resume: Some(token), .. } = &command {
        watch::token(token)?;
    }
    let value = match &command {
        StorageCommand::Put(put) => read_value(put)?,
        _ => Bytes::new(),
    };
    Ok(Task { command, value })
}

fn read_value(put: &Put) -> Result<Bytes, Failure> {
    match (&put.file, &put.value) {
        (Some(file), _) => Ok(Bytes::from(std::fs::read(file).map_err(|error| local("read", file, &error))?)),
        (None, Some(value)) if value == "-" => {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| local("read", Path::new("stdin"), &error))?;
            Ok(Bytes::from(bytes))
        }
        (None, value) => Ok(Bytes::from(value.clone().unwrap_or_default().into_encoded_bytes())),
    }
}

fn local(verb: &str, what: &Path, error: &std::io::Error) -> Failure {
    Failure::Local { message: format!("cannot {verb} {}: {error}", what.display()) }
}

/// What an operation on a key was to do, for its failure.
fn failed<'a>(verb: &'a str, key: &'a str) -> impl FnOnce(Error) -> Failure + 'a {
    move |error| Failure::operation(format!("{verb} {key:?}"), error)
}

/// Runs the command.
pub(crate) async fn run(global: &Global, storage: &dyn Storage, task: Task) -> Result<(), Failure> {
    let Task { command, value } = task;
    match command {
        StorageCommand::Get { key, output, replicas } => {
            let options = GetOptions { quorum: replicas.quorum(), ..GetOptions::default() };
            let entry = storage.get_with(&key, options).await.map_err(failed("get", &key))?;
            let entry = entry.ok_or(Failure::NoSuchKey { key })?;
            show(global.format, &entry, output.as_deref())
        }
        StorageCommand::Put(put) => self::put(global, storage, &put, value).await,
        StorageCommand::Delete { key, replicas } => {
            let options = DeleteOptions { quorum: replicas.quorum(), ..DeleteOptions::default() };
            let version = storage.delete_with(&key, options).await.map_err(failed("delete", &key))?;
            let for_programs = || json!({"key": key, "version": json::version(version)});
            print(global.format, || format!("✅ Deleted key: {}", table::key(&key)), for_programs)
        }
        StorageCommand::Exists { key, replicas } => {
            let quorum = replicas.quorum();
            let options = GetOptions { without_value: true, quorum, ..GetOptions::default() };
            let found = storage.get_with(&key, options).await.map_err(failed("look for", &key))?;
            let exists = found.is_some();
            let for_people = || if exists { "yes" } else { "no" }.to_owned();
            print(global.format, for_people, || json!({"key": key, "exists": exists}))?;
            if exists { Ok(()) } else { Err(Failure::Told(Exit::Failed)) }
        }
        StorageCommand::List(list) => self::list(global, storage, &list).await,
        StorageCommand::Watch { prefix, resume } => {
            watch::run(global.format, storage, &prefix, resume.as_deref()).await
        }
        StorageCommand::Import { file, replicas } => {
            transfer::import(global.format, storage, &file, replicas.quorum()).await
        }
        StorageCommand::Export { prefix, output, replicas } => {
            transfer::export(global.format, storage, &prefix, output.as_deref(), replicas.quorum()).await
        }
    }
}

async fn put(global: &Global, storage: &dyn Storage, put: &Put, value: Bytes) -> Result<(), Failure> {
    let Put { key, ttl, replicas, value: _, file: _ } = put;
    let options = PutOptions { ttl: *ttl, quorum: replicas.quorum(), ..PutOptions::default() };
    let version = storage.put_with(key, value, options).await.map_err(failed("put", key))?;
    let for_programs = || json!({"key": key, "version": json::version(version)});
    print(global.format, || format!("✅ Stored key: {}", table::key(key)), for_programs)
}

fn show(format: Format, entry: &Entry, output: Option<&Path>) -> Result<(), Failure> {
    if let Some(file) = output {
        std::fs::write(file, &entry.value).map_err(|error| local("write", file, &error))?;
        let told = || format!("{} bytes in {}", entry.value.len(), file.display());
        let mut object = json::entry(entry, false);
        object["bytes"] = json!(entry.value.len());
        return print(format, told, || object);
    }
    match format {
        Format::Json => print(format, String::new, || json::entry(entry, true)),
        Format::Table => {
            let mut stdout = std::io::stdout().lock();
            write_all(&mut stdout, &entry.value).map(drop)
        }
    }
}

/// Writes and flushes; says whether anybody is still reading.
pub(crate) fn write_all(out: &mut impl Write, bytes: &[u8]) -> Result<bool, Failure> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Local { message: format!("cannot write the result: {error}") }),
    }
}

async fn list(global: &Global, storage: &dyn Storage, list: &List) -> Result<(), Failure> {
    let (entries, cursor) = collect(storage, list).await.map_err(failed("list", &list.prefix))?;
    let for_programs = || {
        let entries: Vec<Json> = entries.iter().map(|entry| json::entry(entry, list.values)).collect();
        json!({"entries": entries, "cursor": cursor.as_ref().map(Cursor::as_str)})
    };
    let for_people = || table::entries(&entries, list.values, cursor.as_ref());
    print(global.format, for_people, for_programs)
}

async fn collect(storage: &dyn Storage, list: &List) -> Result<(Vec<Entry>, Option<Cursor>), Error> {
    let mut entries = Vec::new();
    let mut cursor = list.after.clone().map(Cursor::after);
    while entries.len() < list.limit {
        let left = u32::try_from(list.limit - entries.len()).unwrap_or(u32::MAX);
        let options = ListOptions {
            limit: Some(left.min(STORAGE_PAGE_KEYS_MAX)),
            after: cursor.take(),
            values: list.values,
            quorum: list.replicas.quorum(),
            timeout: None,
        };
        let page = storage.list_with(&list.prefix, options).await?;
        entries.extend(page.entries);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok((entries, cursor))
}
