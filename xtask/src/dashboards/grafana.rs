//! The part of Grafana's dashboard schema that is used (schema version 41, Grafana 11.6 and later), and how a [`Dashboard`] becomes it.
//! `cargo xtask observe` holds the result against the models that Grafana publishes.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Dashboard, Kind, Looks, Panel, Query, Row, Step, Unit};

/// A row of Grafana's grid.
const COLUMNS: usize = 24;
/// Every dashboard has it, so that each can link to all.
const TAG: &str = "debros";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    uid: &'static str,
    title: String,
    description: &'static str,
    tags: [&'static str; 1],
    schema_version: u32,
    editable: bool,
    graph_tooltip: u32,
    refresh: &'static str,
    time: BTreeMap<&'static str, &'static str>,
    timezone: &'static str,
    links: Vec<Link>,
    templating: BTreeMap<&'static str, Vec<Value>>,
    panels: Vec<Placed>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    #[serde(rename = "type")]
    kind: &'static str,
    title: String,
    url: String,
    tooltip: String,
    icon: &'static str,
    tags: Vec<&'static str>,
    as_dropdown: bool,
    include_vars: bool,
    keep_time: bool,
    target_blank: bool,
}

/// A panel or the heading of a row, at its place.
#[derive(Serialize)]
#[serde(untagged)]
enum Placed {
    Heading(Heading),
    Panel(Box<Shown>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Heading {
    id: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    collapsed: bool,
    grid_pos: Place,
    panels: [u8; 0],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    title: String,
    description: String,
    datasource: Source,
    grid_pos: Place,
    targets: Vec<Target>,
    field_config: FieldConfig,
    options: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    transformations: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Link>,
}

#[derive(Serialize)]
struct Source {
    #[serde(rename = "type")]
    kind: &'static str,
    uid: &'static str,
}

const SOURCE: Source = Source { kind: "prometheus", uid: "${datasource}" };

#[derive(Clone, Copy, Serialize)]
struct Place {
    x: usize,
    y: usize,
    w: usize,
    h: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    ref_id: String,
    datasource: Source,
    expr: String,
    legend_format: String,
    editor_mode: &'static str,
    range: bool,
    instant: bool,
    format: &'static str,
    exemplar: bool,
}

#[derive(Serialize)]
struct FieldConfig {
    defaults: Value,
    overrides: Vec<Value>,
}

/// The dashboard as Grafana imports it, with these lists to choose from.
pub(super) fn json(dashboard: &Dashboard, lists: &[(&str, &str, &str)], runbooks: &str) -> Result<String> {
    let page = Page {
        uid: dashboard.uid,
        title: format!("debros: {}", dashboard.title),
        description: dashboard.about,
        tags: [TAG],
        schema_version: 41,
        editable: false,
        // One crosshair in all panels.
        graph_tooltip: 1,
        refresh: "30s",
        time: BTreeMap::from([("from", "now-3h"), ("to", "now")]),
        timezone: "browser",
        links: vec![to_all_dashboards(), to_runbooks()],
        templating: BTreeMap::from([("list", variables(lists, runbooks))]),
        panels: place(&dashboard.rows),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn to_all_dashboards() -> Link {
    Link {
        kind: "dashboards",
        title: "debros".into(),
        url: String::new(),
        tooltip: "The other dashboards, for the same nodes and time".into(),
        icon: "external link",
        tags: vec![TAG],
        as_dropdown: false,
        include_vars: true,
        keep_time: true,
        target_blank: false,
    }
}

fn to_runbooks() -> Link {
    link_out("Runbooks", "${runbooks}", "What to do about each alert")
}

fn link_out(title: &str, url: &str, tooltip: &str) -> Link {
    Link {
        kind: "link",
        title: title.into(),
        url: url.into(),
        tooltip: tooltip.into(),
        icon: "doc",
        tags: Vec::new(),
        as_dropdown: false,
        include_vars: false,
        keep_time: false,
        target_blank: true,
    }
}

fn variables(lists: &[(&str, &str, &str)], runbooks: &str) -> Vec<Value> {
    let labels = |(name, label, metric): &(&str, &str, &str)| {
        json!({
            "name": name, "label": label, "type": "query",
            "description": format!("Whose {name} is looked at"),
            "datasource": SOURCE,
            "query": format!("label_values({metric}, {name})"),
            "multi": true, "includeAll": true, "allValue": ".*",
            // At each change of the time range: nodes come and go.
            "refresh": 2, "sort": 1, "hide": 0,
            "current": {"text": "All", "value": "$__all"},
        })
    };
    let source = json!({"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus",
                        "description": "The Prometheus that scrapes the nodes", "multi": false, "includeAll": false, "hide": 0});
    let runbooks = json!({"name": "runbooks", "label": "Runbooks at", "type": "textbox", "query": runbooks,
                          "description": "The address below which the runbooks are read", "hide": 2,
                          "current": {"text": runbooks, "value": runbooks}});
    std::iter::once(source).chain(lists.iter().map(labels)).chain([runbooks]).collect()
}

/// Row below row, each filled from side to side.
fn place(rows: &[Row]) -> Vec<Placed> {
    let (mut placed, mut id, mut y) = (Vec::new(), 0, 0);
    let mut next = || {
        id += 1;
        id
    };
    for row in rows {
        let grid_pos = Place { x: 0, y, w: COLUMNS, h: 1 };
        let heading =
            Heading { id: next(), kind: "row", title: row.title, collapsed: false, grid_pos, panels: [] };
        placed.push(Placed::Heading(heading));
        let (w, h) = (COLUMNS / row.panels.len(), row.panels.iter().map(height).max().unwrap_or(0));
        for (index, panel) in row.panels.iter().enumerate() {
            let shown = shown(panel, next(), Place { x: index * w, y: y + 1, w, h });
            placed.push(Placed::Panel(Box::new(shown)));
        }
        y += 1 + h;
    }
    placed
}

fn height(panel: &Panel) -> usize {
    match panel.kind {
        Kind::Number => 5,
        Kind::Lines => 8,
        Kind::Table => 9,
    }
}

fn shown(panel: &Panel, id: u32, grid_pos: Place) -> Shown {
    let (kind, options) = match panel.kind {
        Kind::Number => ("stat", number_options()),
        Kind::Lines => ("timeseries", lines_options()),
        Kind::Table => ("table", json!({"showHeader": true, "cellHeight": "sm"})),
    };
    let runbook = panel.runbook.iter();
    let links = runbook.map(|alert| {
        link_out(&format!("Runbook: {alert}"), &format!("${{runbooks}}/{alert}.md"), "What to do about it")
    });
    Shown {
        id,
        kind,
        title: panel.question.clone(),
        description: panel.about.clone(),
        datasource: SOURCE,
        grid_pos,
        targets: panel.queries.iter().enumerate().map(|(index, query)| target(panel, index, query)).collect(),
        field_config: FieldConfig { defaults: defaults(panel), overrides: overrides(panel) },
        options,
        transformations: if panel.kind == Kind::Table { one_table() } else { Vec::new() },
        links: links.collect(),
    }
}

fn number_options() -> Value {
    json!({
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
        "orientation": "auto", "textMode": "value_and_name", "colorMode": "background",
        "graphMode": "area", "justifyMode": "auto", "wideLayout": true,
        "showPercentChange": false, "percentChangeColorMode": "standard",
    })
}

fn lines_options() -> Value {
    json!({
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    })
}

/// The queries of a table are its columns: rows of the same labels become one.
fn one_table() -> Vec<Value> {
    vec![
        json!({"id": "merge", "options": {}}),
        json!({"id": "organize", "options": {"excludeByName": {"Time": true}, "indexByName": {}, "renameByName": {}}}),
    ]
}

fn target(panel: &Panel, index: usize, query: &Query) -> Target {
    let table = panel.kind == Kind::Table;
    Target {
        ref_id: ref_id(index),
        datasource: SOURCE,
        expr: query.expr.clone(),
        legend_format: query.legend.clone(),
        editor_mode: "code",
        range: !table,
        instant: table,
        format: if table { "table" } else { "time_series" },
        exemplar: query.exemplars,
    }
}

/// A, B, C and so on; Grafana wants letters.
fn ref_id(index: usize) -> String {
    let index = u8::try_from(index).unwrap_or(u8::MAX).min(25);
    char::from(b'A' + index).to_string()
}

fn defaults(panel: &Panel) -> Value {
    let mut defaults = json!({
        "unit": panel.unit.grafana(),
        "noValue": "nothing to show: nothing happened",
        "thresholds": thresholds(&panel.steps),
        "color": {"mode": if panel.kind == Kind::Lines { "palette-classic" } else { "thresholds" }},
    });
    defaults["custom"] = match panel.kind {
        Kind::Number => return defaults,
        Kind::Table => json!({"align": "auto", "filterable": false, "cellOptions": {"type": "auto"}}),
        Kind::Lines => {
            let style = if panel.steps.is_empty() { "off" } else { "dashed" };
            json!({
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never",
                "spanNulls": false, "axisSoftMin": 0,
                "thresholdsStyle": {"mode": style},
            })
        }
    };
    defaults
}

fn overrides(panel: &Panel) -> Vec<Value> {
    let columns = panel.queries.iter().enumerate().filter_map(|(index, query)| {
        let column = query.column.as_ref()?;
        let mut properties = vec![
            json!({"id": "displayName", "value": query.legend}),
            json!({"id": "unit", "value": column.unit.grafana()}),
            json!({"id": "thresholds", "value": thresholds(&column.steps)}),
        ];
        if !column.steps.is_empty() {
            properties.push(
                json!({"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}}),
            );
        }
        // A table of one query has a column without the letter.
        let name =
            if panel.queries.len() == 1 { "Value".to_owned() } else { format!("Value #{}", ref_id(index)) };
        Some(json!({"matcher": {"id": "byName", "options": name}, "properties": properties}))
    });
    columns.collect()
}

fn thresholds(steps: &[Step]) -> Value {
    let value = |from: f64| if from == f64::NEG_INFINITY { Value::Null } else { json!(from) };
    let step = |step: &Step| json!({"color": step.looks.colour(), "value": value(step.from)});
    let mut steps = steps.iter().map(step).collect::<Vec<_>>();
    if steps.is_empty() {
        // Neither good nor bad.
        steps.push(json!({"color": "blue", "value": null}));
    }
    json!({"mode": "absolute", "steps": steps})
}

impl Looks {
    fn colour(self) -> &'static str {
        match self {
            Self::Good => "green",
            Self::Doubtful => "orange",
            Self::Bad => "red",
        }
    }
}

impl Unit {
    fn grafana(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "binBps",
            Self::PerSecond => "ops",
            Self::RequestsPerSecond => "reqps",
            Self::Part => "percentunit",
            Self::Count => "short",
            Self::Times => "suffix:x",
        }
    }
}
