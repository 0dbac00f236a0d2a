//! The one form of every benchmark of this project: a table for people, and JSON, one object a line, for programs.
//! It decides how a result is shown and how two systems are compared; it measures nothing.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One result. A field without a meaning for the work is `None`: `null` in JSON, `-` in the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) work: &'static str,
    /// Who did the work; `ratio A/B` for a comparison, whose fields are quotients.
    pub(crate) system: String,
    pub(crate) clients: usize,
    pub(crate) ops_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// CPU time of the servers, all of them together, for one operation.
    pub(crate) cpu_us_per_op: Option<f64>,
}

/// What identifies a row beside its system.
type Kind = (&'static str, &'static str, usize);

impl Row {
    fn kind(&self) -> Kind {
        (self.bench, self.work, self.clients)
    }

    /// This row's figures divided by another's.
    fn over(&self, other: &Row) -> Row {
        let divide = |a: Option<f64>, b: Option<f64>| a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b);
        Row {
            system: format!("ratio {}/{}", self.system, other.system),
            ops_per_s: divide(self.ops_per_s, other.ops_per_s),
            p50_us: divide(self.p50_us, other.p50_us),
            p99_us: divide(self.p99_us, other.p99_us),
            cpu_us_per_op: divide(self.cpu_us_per_op, other.cpu_us_per_op),
            ..self.clone()
        }
    }

    fn cells(&self) -> [String; 8] {
        let ratio = self.system.starts_with("ratio ");
        let show = |value: Option<f64>| match value {
            None => "-".to_owned(),
            Some(value) if ratio => format!("x{value:.2}"),
            Some(value) if value >= 100.0 => format!("{value:.0}"),
            Some(value) => format!("{value:.1}"),
        };
        [
            self.bench.to_owned(),
            self.work.to_owned(),
            self.system.clone(),
            self.clients.to_string(),
            show(self.ops_per_s),
            show(self.p50_us),
            show(self.p99_us),
            show(self.cpu_us_per_op),
        ]
    }
}

/// Rows with a ratio line behind each pair of ours and a peer's.
pub(crate) fn with_ratios(rows: &[Row], ours: &str) -> Vec<Row> {
    let mut shown = Vec::new();
    for row in rows {
        shown.push(row.clone());
        let mine = rows.iter().find(|mine| mine.system == ours && mine.kind() == row.kind());
        if let Some(mine) = mine.filter(|_| row.system != ours) {
            shown.push(mine.over(row));
        }
    }
    shown
}

/// The rows as a table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["bench", "work", "system", "clients", "ops/s", "p50 us", "p99 us", "cpu us/op"]);
    for row in rows {
        table.add_row(row.cells());
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Writes the rows as JSON, one object a line.
pub(crate) fn write_json(path: &Path, rows: &[impl Serialize]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut file = BufWriter::new(file);
    for row in rows {
        serde_json::to_writer(&mut file, row)?;
        file.write_all(b"\n")?;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Row, table, with_ratios, write_json};

    fn row(work: &'static str, system: &str, ops: f64) -> Row {
        Row {
            bench: "sql",
            work,
            system: system.into(),
            clients: 8,
            ops_per_s: Some(ops),
            p50_us: Some(100.0),
            p99_us: None,
            cpu_us_per_op: Some(0.0),
        }
    }

    #[test]
    fn a_ratio_stands_behind_each_pair_and_divides_only_what_can_be_divided() {
        let rows = with_ratios(
            &[row("insert", "debros", 300.0), row("insert", "etcd", 200.0), row("read", "etcd", 1.0)],
            "debros",
        );
        let systems = rows.iter().map(|row| row.system.as_str()).collect::<Vec<_>>();
        assert_eq!(systems, ["debros", "etcd", "ratio debros/etcd", "etcd"]);
        assert_eq!(rows[2].ops_per_s, Some(1.5));
        assert_eq!(rows[2].p50_us, Some(1.0));
        assert_eq!((rows[2].p99_us, rows[2].cpu_us_per_op), (None, None));
    }

    #[test]
    fn json_has_one_object_a_line_with_the_agreed_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.json");
        write_json(&path, &[row("insert", "debros", 2.0), row("insert", "etcd", 1.0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap();
        let expected = "{\"bench\":\"sql\",\"work\":\"insert\",\"system\":\"debros\",\"clients\":8,\"ops_per_s\":2.0,\
                        \"p50_us\":100.0,\"p99_us\":null,\"cpu_us_per_op\":0.0}";
        assert_eq!(first, expected);
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn the_table_has_a_line_a_row() {
        let shown = table(&[row("insert", "debros", 1234.5)]);
        assert!(shown.contains("1234") && shown.contains("insert"), "{shown}");
    }
}
