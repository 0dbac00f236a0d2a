//! The shapes of the HTTP API, byte by byte where a client counts on them. Needs no cluster.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::IntoResponse;
use debros_node::http::admin::{HealthBody, StatusBody};
use debros_node::http::rqlite::{
    Answer, Arguments, Form, Refusal, certainly_reads, parse_statements, parse_text, render, statement,
};
use debros_proto::{ErrorCode, Failure, limits, v1};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_oneof, proptest};
use serde_json::{Value, json};
use v1::statement_result::Outcome;
use v1::value::Kind;

fn value(kind: Kind) -> v1::Value {
    v1::Value { kind: Some(kind) }
}

fn text(text: &str) -> v1::Value {
    value(Kind::Text(text.to_owned()))
}

fn refused(body: &str) -> Failure {
    parse_statements(body.as_bytes()).expect_err(body)
}

#[test]
fn statements_come_as_strings_or_with_parameters() {
    let body = r#"["SELECT 1",
        ["INSERT INTO t VALUES(?,?,?,?,?,?)", 9223372036854775807, 0.1, "two", null, true, [0, 255]],
        ["SELECT :a, :b", {"a": -1, "b": "x'0aFF'"}],
        ["SELECT 2"]]"#;
    let parsed = parse_statements(body.as_bytes()).expect("a valid body");
    assert_eq!(parsed.len(), 4);
    assert_eq!(parsed[0], statement("SELECT 1".into()));
    let positional = vec![
        value(Kind::Integer(i64::MAX)),
        value(Kind::Real(0.1)),
        text("two"),
        v1::Value { kind: None },
        value(Kind::Integer(1)),
        value(Kind::Blob(vec![0, 255].into())),
    ];
    assert_eq!(parsed[1].positional, positional);
    let named = |name: &str, value| v1::NamedValue { name: name.into(), value: Some(value) };
    let expected =
        vec![named("a", value(Kind::Integer(-1))), named("b", value(Kind::Blob(vec![10, 255].into())))];
    assert_eq!(parsed[2].named, expected);
    assert!(parsed[3].positional.is_empty());
}

#[test]
fn numbers_are_read_exactly() {
    let body =
        r#"[["SELECT ?", -9223372036854775808, 18446744073709551615, 1.0, 5e-324, 0.30000000000000004]]"#;
    let parsed = parse_statements(body.as_bytes()).expect("a valid body");
    let reals = [18_446_744_073_709_551_615.0, 1.0, 5e-324, 0.1 + 0.2].map(|real| value(Kind::Real(real)));
    assert_eq!(parsed[0].positional[0], value(Kind::Integer(i64::MIN)));
    assert_eq!(parsed[0].positional[1..], reals);
}

#[test]
fn strings_that_only_look_like_blobs_stay_strings() {
    for like in ["x'0'", "x'0g'", "x'", "x", "x'00", "'00'", "x'+1'", "ä'00'"] {
        let body = serde_json::to_vec(&json!([["SELECT ?", like]])).unwrap();
        assert_eq!(parse_statements(&body).unwrap()[0].positional[0], text(like));
    }
}

#[test]
fn bodies_that_are_no_statements_are_refused_in_rqlites_words() {
    for (body, words) in [
        ("", "invalid JSON body"),
        ("[\"SELECT 1\"", "invalid JSON body"),
        ("[\"SELECT 1\"] x", "invalid JSON body"),
        ("[]", "no statements"),
        ("{}", "invalid request"),
        ("\"SELECT 1\"", "invalid request"),
        ("[1]", "invalid request"),
        ("[[]]", "invalid request"),
        ("[[1]]", "invalid request"),
        ("[{\"sql\":\"SELECT 1\"}]", "invalid request"),
        ("[[\"SELECT ?\", [256]]]", "invalid request"),
        ("[[\"SELECT ?\", [\"a\"]]]", "invalid request"),
        ("[[\"SELECT :a\", {\"a\": {}}]]", "invalid request"),
        ("[[\"SELECT :a\", {\"a\": {\"b\": {\"c\": 1}}}]]", "invalid request"),
    ] {
        let failure = refused(body);
        assert!(failure.message.starts_with(words), "{body}: {failure}");
        assert_eq!(failure.code, ErrorCode::InvalidArgument);
        assert_eq!(Refusal(failure).status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(refused(&"[".repeat(100_000)).code, ErrorCode::InvalidArgument);
    let many = format!("[{}\"\"]", "\"\",".repeat(limits::STATEMENTS_MAX));
    assert!(refused(&many).message.contains("STATEMENTS_MAX"));
    let wide = format!("[[\"\"{}]]", ",1".repeat(limits::PARAMETERS_MAX + 1));
    assert!(refused(&wide).message.contains("PARAMETERS_MAX"));
    assert_eq!(parse_text(b"\xff").unwrap_err().code, ErrorCode::InvalidArgument);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        "x'[0-9a-f]{0,4}'".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(".{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_value() -> impl Strategy<Value = v1::Value> {
    prop_oneof![
        Just(v1::Value { kind: None }),
        any::<i64>().prop_map(|integer| value(Kind::Integer(integer))),
        any::<f64>().prop_map(|real| value(Kind::Real(if real.is_nan() { 0.0 } else { real }))),
        ".{0,12}".prop_map(|string| text(&string)),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| value(Kind::Blob(bytes.into()))),
    ]
}

proptest! {
    #[test]
    fn no_json_breaks_the_parser(json in any_json()) {
        let _ = parse_statements(&serde_json::to_vec(&json).unwrap());
        let _ = parse_statements(&serde_json::to_vec(&json!([["SELECT ?", json]])).unwrap());
    }

    #[test]
    fn no_bytes_break_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse_statements(&bytes);
        let _ = parse_text(&bytes);
    }

    #[test]
    fn no_url_breaks_the_arguments(query in "[ -~]{0,40}") {
        if let Ok(uri) = format!("/db/query?{query}").replace(['#', ' ', '"', '<', '>'], "").parse::<Uri>() {
            let _ = Arguments::read(&uri, &HeaderMap::new());
        }
        for name in ["timeout", "freshness", "db_timeout", "level", "db", "namespace"] {
            if let Ok(uri) = format!("/?{name}={}", query.replace(|c: char| !c.is_ascii_alphanumeric(), "")).parse::<Uri>() {
                let _ = Arguments::read(&uri, &HeaderMap::new());
            }
        }
    }

    #[test]
    fn every_result_is_written_as_json(
        rows in prop::collection::vec(prop::collection::vec(any_value(), 0..4), 0..4),
        types in prop::collection::vec("boolean|datetime|text||integer", 0..4),
        associative: bool,
        blob_array: bool,
        pretty: bool,
    ) {
        let columns = (0..3).map(|at| format!("c{}", at % 2)).collect();
        let answer = rows_answer(columns, types, rows);
        let written = render(&answer, Form { associative, blob_array, pretty }).unwrap();
        // The infinities are outside of what serde_json reads; rqlite's clients read them.
        let written = String::from_utf8(written).unwrap().replace("9.0e+999", "0");
        prop_assert!(serde_json::from_str::<Value>(&written).is_ok(), "{}", written);
    }
}

fn result(outcome: Outcome) -> v1::StatementResult {
    v1::StatementResult { outcome: Some(outcome) }
}

fn counts(last_insert_id: i64, rows_affected: u64) -> v1::StatementResult {
    result(Outcome::Counts(v1::Counts { last_insert_id, rows_affected }))
}

fn rows_answer(columns: Vec<String>, types: Vec<String>, rows: Vec<Vec<v1::Value>>) -> Answer {
    let rows = rows.into_iter().map(|values| v1::Row { values }).collect();
    Answer { results: vec![result(Outcome::Rows(v1::Rows { columns, types, rows }))], ..Answer::default() }
}

fn strings<const N: usize>(strings: [&str; N]) -> Vec<String> {
    strings.map(str::to_owned).to_vec()
}

#[track_caller]
fn assert_written(answer: &Answer, form: Form, expected: &str) {
    assert_eq!(String::from_utf8(render(answer, form).unwrap()).unwrap(), expected);
}

const PLAIN: Form = Form { associative: false, blob_array: false, pretty: false };
const ASSOCIATIVE: Form = Form { associative: true, ..PLAIN };

#[test]
fn writes_are_answered_as_by_rqlite() {
    let failed = v1::SqlError { message: "near \"nonsense\": syntax error".into(), ..Default::default() };
    let results = vec![counts(1, 1), counts(0, 0), counts(0, 3), result(Outcome::Error(failed))];
    let mut answer = Answer { results, ..Answer::default() };
    let each = r#"[{"last_insert_id":1,"rows_affected":1},{},{"rows_affected":3},{"error":"near \"nonsense\": syntax error"}]"#;
    assert_written(&answer, PLAIN, &format!(r#"{{"results":{each}}}"#));
    answer.time = Some(0.5);
    answer.sequence_number = Some(7);
    answer.raft_index = Some(9);
    let expected = format!(r#"{{"results":{each},"time":0.5,"sequence_number":7,"raft_index":9}}"#);
    assert_written(&answer, PLAIN, &expected);
    let one = Answer { results: vec![counts(2, 1)], ..Answer::default() };
    assert_written(&one, ASSOCIATIVE, r#"{"results":[{"last_insert_id":2,"rows_affected":1,"rows":null}]}"#);
    let pretty = "{\n    \"results\": [\n        {\n            \"last_insert_id\": 2,\n            \"rows_affected\": 1\n        }\n    ]\n}";
    assert_written(&one, Form { pretty: true, ..PLAIN }, pretty);
}

#[test]
fn rows_are_answered_as_by_rqlite() {
    let rows = vec![
        vec![
            value(Kind::Integer(i64::MAX)),
            text("fiona \"x\""),
            value(Kind::Real(1.0)),
            value(Kind::Blob(vec![0, 1, 255].into())),
        ],
        vec![
            v1::Value { kind: None },
            text(""),
            value(Kind::Real(f64::INFINITY)),
            value(Kind::Blob(vec![].into())),
        ],
    ];
    let answer =
        rows_answer(strings(["id", "name", "r", "b"]), strings(["integer", "text", "", "blob"]), rows);
    let head = r#""columns":["id","name","r","b"],"types":["integer","text","real","blob"]"#;
    let values = r#"[[9223372036854775807,"fiona \"x\"",1.0,"AAH/"],[null,"",9.0e+999,""]]"#;
    assert_written(&answer, PLAIN, &format!(r#"{{"results":[{{{head},"values":{values}}}]}}"#));
    let arrays = r#"[[9223372036854775807,"fiona \"x\"",1.0,[0,1,255]],[null,"",9.0e+999,[]]]"#;
    let form = Form { blob_array: true, ..PLAIN };
    assert_written(&answer, form, &format!(r#"{{"results":[{{{head},"values":{arrays}}}]}}"#));
}

#[test]
fn no_rows_have_columns_and_no_values() {
    let answer = rows_answer(strings(["id", "name"]), strings(["integer", "text"]), vec![]);
    assert_written(&answer, PLAIN, r#"{"results":[{"columns":["id","name"],"types":["integer","text"]}]}"#);
    assert_written(
        &answer,
        ASSOCIATIVE,
        r#"{"results":[{"types":{"id":"integer","name":"text"},"rows":[]}]}"#,
    );
}

#[test]
fn rows_as_objects_have_each_name_once() {
    let row = vec![value(Kind::Integer(1)), text("a"), value(Kind::Integer(2))];
    let answer =
        rows_answer(strings(["id", "name", "id"]), strings(["integer", "text", "integer"]), vec![row]);
    let expected = r#"{"results":[{"types":{"name":"text","id":"integer"},"rows":[{"name":"a","id":2}]}]}"#;
    assert_written(&answer, ASSOCIATIVE, expected);
}

#[test]
fn declared_times_and_booleans_are_converted_as_by_rqlite() {
    let row = vec![
        value(Kind::Integer(1)),
        text("2004-02-14"),
        text("2004-02-14 07:15:00"),
        value(Kind::Integer(1_634_931_572)),
        text("tomorrow"),
    ];
    let types = strings(["boolean", "date", "timestamp", "datetime", "datetime"]);
    let answer = rows_answer(strings(["a", "b", "c", "d", "e"]), types, vec![row]);
    let written: Value = serde_json::from_slice(&render(&answer, PLAIN).unwrap()).unwrap();
    let expected =
        json!([true, "2004-02-14T00:00:00Z", "2004-02-14T07:15:00Z", "2021-10-22T19:39:32Z", "tomorrow"]);
    assert_eq!(written["results"][0]["values"][0], expected);
}

fn arguments(url: &str) -> Result<Arguments, Failure> {
    Arguments::read(&url.parse().expect("a URL"), &HeaderMap::new())
}

#[test]
fn arguments_have_rqlites_names_and_defaults() {
    let plain = arguments("/db/query").unwrap();
    assert_eq!((plain.namespace.as_str(), plain.database.as_str()), ("default", "default"));
    assert_eq!(plain.consistency(), v1::Consistency::Weak);
    assert_eq!(plain.write_header().timeout_ms, 0);
    let full = arguments("/db/query?q=SELECT%201+%2B%201&level=None&freshness=1.5s&timings&pretty&namespace=app&db=chat&timeout=1m2s&db_timeout=250ms&associative&blob_array&redirect&retries=3").unwrap();
    assert_eq!(full.query.as_deref(), Some("SELECT 1 + 1"));
    assert_eq!((full.namespace.as_str(), full.database.as_str()), ("app", "chat"));
    assert_eq!((full.consistency(), full.freshness_ms()), (v1::Consistency::None, 1500));
    assert_eq!((full.write_header().timeout_ms, full.read_header().timeout_ms), (62_000, 250));
    assert!(full.timings && full.pretty && full.associative && full.blob_array && !full.transaction);
    let gorqlite = arguments("/db/execute?timings&level=weak&transaction&queue").unwrap();
    assert!(gorqlite.transaction && gorqlite.queue);
}

#[test]
fn strict_freshness_is_answered_by_the_leader() {
    let strict = arguments("/db/query?q=x&level=none&freshness=1s&freshness_strict").unwrap();
    assert_eq!(strict.consistency(), v1::Consistency::Weak);
    assert!(arguments("/db/query?q=x&freshness_strict").is_err());
}

#[test]
fn arguments_that_cannot_be_read_are_refused() {
    for url in [
        "/?level=sometimes",
        "/?timeout=1",
        "/?timeout=-1s",
        "/?freshness=abc",
        "/?timeout=.s",
        "/?timeout=1e9s",
        "/?db_timeout=",
        "/?q=",
        "/?namespace=A",
        "/?db=..%2f",
        "/?timeout=99999999999999999999999h",
    ] {
        assert_eq!(arguments(url).expect_err(url).code, ErrorCode::InvalidArgument);
    }
}

#[test]
fn a_header_names_the_namespace_too() {
    let mut headers = HeaderMap::new();
    headers.insert("X-Debros-Namespace", HeaderValue::from_static("app"));
    let read = |url: &str| Arguments::read(&url.parse().unwrap(), &headers);
    assert_eq!(read("/db/query").unwrap().namespace.as_str(), "app");
    assert!(read("/db/query?namespace=app").is_ok());
    assert!(read("/db/query?namespace=other").is_err());
}

#[test]
fn only_what_certainly_reads_is_read() {
    let reads = |sql: &str| certainly_reads(&[statement(sql.to_owned())]);
    for sql in ["SELECT 1", " select 1", "-- a\n/* b */ VALUES(1)", "\n\tSELECT\n1"] {
        assert!(reads(sql), "{sql}");
    }
    for sql in [
        "INSERT INTO t VALUES(1)",
        "WITH a AS (SELECT 1) DELETE FROM t",
        "PRAGMA x",
        "",
        "--",
        "/*",
        "SELECTED",
    ] {
        assert!(!reads(sql), "{sql}");
    }
}

async fn response_of(failure: Failure) -> (StatusCode, HeaderMap, String) {
    let response = Refusal(failure).into_response();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, headers, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn refusals_tell_programs_and_people() {
    let (status, headers, body) = response_of(Failure::new(ErrorCode::Unavailable, "no leader — yet")).await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "leader not found\n"));
    assert_eq!(headers["x-debros-error"], "no leader ? yet");
    assert_eq!(headers["x-debros-error-code"], "UNAVAILABLE");
    let (status, _, body) = response_of(Failure::new(ErrorCode::UnknownOutcome, "no quorum answered")).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        body,
        json!({"error": "no quorum answered", "code": "UNKNOWN_OUTCOME", "maybe_applied": true})
    );
    let busy = Failure::new(ErrorCode::Busy, "full").with_retry_after(Duration::from_millis(20));
    let (status, headers, _) = response_of(busy).await;
    assert_eq!(
        (status, &headers["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from_static("1"))
    );
    let (status, ..) = response_of(Failure::limit("REQUEST_BYTES_MAX", 1, 2)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[test]
fn health_and_status_have_stable_names() {
    let check = v1::HealthCheck {
        name: "disk".into(),
        status: "failed".into(),
        message: "full".into(),
        took_us: 3,
        next_step: "free some".into(),
    };
    let health = v1::HealthResponse { status: "unhealthy".into(), checks: vec![check], checked_unix_ms: 5 };
    let health = HealthBody::from(health);
    assert_eq!(health.http_status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        serde_json::to_value(&health).unwrap(),
        json!({"status": "unhealthy", "checked_unix_ms": 5,
            "checks": [{"name": "disk", "status": "failed", "message": "full", "took_us": 3,
                "next_step": "free some"}]})
    );
    let group = v1::GroupStatus {
        name: "meta".into(),
        role: "leader".into(),
        leader: 1,
        voters: vec![1],
        ..Default::default()
    };
    let mut status =
        v1::StatusResponse { peer_id: "12D3".into(), node_id: 1, groups: vec![group], ..Default::default() };
    assert_eq!(
        serde_json::to_value(StatusBody::from(status.clone())).unwrap(),
        json!({"peer_id": "12D3", "node_id": 1, "cluster_id": "", "version": "", "zone": "", "uptime_seconds": 0,
            "epoch": 0, "connected_peers": 0, "database_bytes": 0, "listen_addresses": [], "warnings": [], "storage": null,
            "disk_free_bytes": 0,
            "groups": [{"group": 0, "name": "meta", "role": "leader", "leader": 1, "term": 0,
                "last_log_index": 0, "applied_index": 0, "voters": [1], "learners": []}]})
    );
    status.storage = Some(v1::StorageStatus {
        layout_version: 2,
        phase: "stable".into(),
        relaxed_namespaces: vec!["cache".into()],
        ..Default::default()
    });
    assert_eq!(
        serde_json::to_value(StatusBody::from(status)).unwrap()["storage"],
        json!({"layout_version": 2, "phase": "stable", "nodes": 0, "nodes_copied": 0, "partitions": 0,
            "partitions_to_copy": 0, "bytes": 0, "hinted_bytes": 0, "relaxed_namespaces": ["cache"]})
    );
}
