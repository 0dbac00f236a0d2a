//! `debros registers`: one operation each, and a watch that goes on until it is interrupted.

use std::io::{ErrorKind, Write};

use debros_sdk::{
    Conflict, LeaseId, LeaseListOptions, RegisterEvent, RegisterListOptions, Registers, RemoteRegisters,
    check,
};
use serde_json::{Value as Json, json};

use crate::arguments::{Global, RegistersCommand};
use crate::commands::{failed, print};
use crate::connection::Connection;
use crate::failure::{Exit, Failure};
use crate::format::Format;
use crate::{json, parameter, table};

/// Tells mistakes that need no node.
pub(crate) fn check(command: &RegistersCommand) -> Result<(), Failure> {
    let wrong = |error: debros_sdk::Error| Failure::usage(error.to_string(), NEXT);
    match command {
        RegistersCommand::Get { key }
        | RegistersCommand::Delete { key, .. }
        | RegistersCommand::Increment { key, .. } => check::register_key(&bytes(key)?).map_err(wrong),
        RegistersCommand::Put { key, value } | RegistersCommand::Cas { key, value, .. } => {
            bytes(value)?;
            check::register_key(&bytes(key)?).map_err(wrong)
        }
        RegistersCommand::List { prefix, limit, after } => {
            bytes(prefix)?;
            after.as_deref().map(bytes).transpose()?;
            match limit {
                Some(0) => Err(Failure::usage("a page has at least one key", NEXT)),
                _ => Ok(()),
            }
        }
        RegistersCommand::Leases { limit: Some(0), .. } => {
            Err(Failure::usage("a page has at least one lease", NEXT))
        }
        RegistersCommand::Leases { .. } => Ok(()),
        RegistersCommand::Watch { prefix, .. } => bytes(prefix).map(drop),
    }
}

const NEXT: &str = "correct it; `debros help registers` shows how keys are written";

fn bytes(text: &str) -> Result<Vec<u8>, Failure> {
    parameter::bytes(text).map_err(|bad| Failure::usage(bad.0, NEXT))
}

/// Runs the command.
pub(crate) async fn run(
    global: &Global,
    connection: &Connection,
    command: RegistersCommand,
) -> Result<(), Failure> {
    let registers = connection.client.registers();
    let format = global.format;
    match command {
        RegistersCommand::Get { key } => get(format, &registers, &bytes(&key)?).await,
        RegistersCommand::Put { key, value } => {
            let put = registers.put(&bytes(&key)?, &bytes(&value)?).await;
            version(format, put.map_err(failed("set the key"))?)
        }
        RegistersCommand::Cas { key, version: expected, value } => {
            let set = registers.compare_and_set(&bytes(&key)?, expected, &bytes(&value)?).await;
            match set.map_err(failed("set the key"))? {
                Ok(written) => version(format, written),
                Err(conflict) => refused(format, &conflict),
            }
        }
        RegistersCommand::Delete { key, version } => delete(format, &registers, &bytes(&key)?, version).await,
        RegistersCommand::Increment { key, delta } => {
            let sum = registers.increment(&bytes(&key)?, delta).await.map_err(failed("add to the key"))?;
            let object = || json!({"value": sum.value, "version": sum.version});
            print(format, || sum.value.to_string(), object)
        }
        RegistersCommand::List { prefix, limit, after } => {
            let after = after.as_deref().map(bytes).transpose()?.map(Into::into);
            let page = registers.list(&bytes(&prefix)?, RegisterListOptions { limit, after }).await;
            let page = page.map_err(failed("list the keys"))?;
            print(format, || table::registers(&page), || json::registers(&page))
        }
        RegistersCommand::Leases { limit, after } => {
            let page = registers.list_leases(LeaseListOptions { limit, after: after.map(LeaseId) }).await;
            let page = page.map_err(failed("list the leases"))?;
            print(format, || table::leases(&page), || json::leases(&page))
        }
        RegistersCommand::Watch { prefix, after, count } => {
            watch(format, &registers, &bytes(&prefix)?, after, count).await
        }
    }
}

async fn get(format: Format, registers: &RemoteRegisters, key: &[u8]) -> Result<(), Failure> {
    let found = registers.get(key).await.map_err(failed("read the key"))?;
    match found {
        Some(register) => {
            let object = || json!({"register": json::register(&register)});
            print(format, || table::register_bytes(&register.value), object)
        }
        None => {
            print(format, || "there is no such key".to_owned(), || json!({"register": Json::Null}))?;
            Err(Failure::Told(Exit::Failed))
        }
    }
}

async fn delete(
    format: Format,
    registers: &RemoteRegisters,
    key: &[u8],
    expected: Option<u64>,
) -> Result<(), Failure> {
    let action = "delete the key";
    let version = match expected {
        Some(expected) => match registers.compare_and_delete(key, expected).await.map_err(failed(action))? {
            Ok(()) => Some(expected),
            Err(conflict) => return refused(format, &conflict),
        },
        None => registers.delete(key).await.map_err(failed(action))?,
    };
    let told = || match version {
        Some(version) => format!("deleted; it had version {version}"),
        None => "there was no such key".to_owned(),
    };
    print(format, told, || json!({ "version": version }))
}

fn version(format: Format, version: u64) -> Result<(), Failure> {
    print(format, || format!("version {version}"), || json!({ "version": version }))
}

fn refused(format: Format, conflict: &Conflict) -> Result<(), Failure> {
    print(format, || table::conflict(conflict), || json::conflict(conflict))?;
    Err(Failure::Told(Exit::Failed))
}

async fn watch(
    format: Format,
    registers: &RemoteRegisters,
    prefix: &[u8],
    after: Option<u64>,
    count: Option<u64>,
) -> Result<(), Failure> {
    let mut watch = registers.watch(prefix, after).await.map_err(failed("watch the keys"))?;
    let mut told = 0;
    while count.is_none_or(|count| told < count)
        && let Some(event) = watch.next().await
    {
        let event = event.map_err(failed("go on watching"))?;
        told += u64::from(!matches!(event, RegisterEvent::Lagged { .. }));
        let text = match format {
            Format::Table => table::watch_event(&event),
            Format::Json => json::watch_event(&event).to_string(),
        };
        match writeln!(std::io::stdout().lock(), "{text}") {
            Ok(()) => {}
            // Nobody reads any more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => {
                return Err(Failure::Local { message: format!("cannot write the change: {error}") });
            }
        }
    }
    Ok(())
}
