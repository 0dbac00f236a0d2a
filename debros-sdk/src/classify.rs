//! Whether a statement reads or writes, by its first keywords. A node has the last word (SQLite
//! itself says there whether a statement writes); this only picks the door to knock at, so a wrong
//! guess costs an error message and never data.

/// The doors of the database service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// `Query`: at the asked consistency, not through the log.
    Read,
    /// `Execute`: through the log.
    Write,
}

/// Which door a statement belongs to.
pub(crate) fn access(sql: &str) -> Access {
    let mut words = Words { rest: sql, depth: 0 };
    let Some(first) = words.next() else { return Access::Read };
    if !first.eq_ignore_ascii_case("with") {
        return of_verb(first).unwrap_or(Access::Write);
    }
    // After the common table expressions, which are in parentheses, comes the statement's own verb.
    words.find_map(of_verb).unwrap_or(Access::Read)
}

/// Whether the first keywords of a statement are these.
pub(crate) fn starts_with(sql: &str, keywords: &[&str]) -> bool {
    let mut words = Words { rest: sql, depth: 0 };
    keywords.iter().all(|keyword| words.next().is_some_and(|word| word.eq_ignore_ascii_case(keyword)))
}

fn of_verb(word: &str) -> Option<Access> {
    const READS: [&str; 4] = ["select", "values", "explain", "pragma"];
    const WRITES: [&str; 4] = ["insert", "update", "delete", "replace"];
    let is = |verbs: &[&str]| verbs.iter().any(|verb| verb.eq_ignore_ascii_case(word));
    match () {
        () if is(&READS) => Some(Access::Read),
        () if is(&WRITES) => Some(Access::Write),
        () => None,
    }
}

/// The bare words of a statement outside parentheses, literals, quoted names and comments.
struct Words<'s> {
    rest: &'s str,
    depth: usize,
}

impl<'s> Words<'s> {
    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or("");
    }

    /// Skips past the next `end`, or to the end of the text.
    fn skip_past(&mut self, opening: usize, end: &str) {
        let body = self.rest.get(opening..).unwrap_or("");
        let length = body.find(end).map_or(body.len(), |at| at + end.len());
        self.skip(opening + length);
    }
}

impl<'s> Iterator for Words<'s> {
    type Item = &'s str;

    fn next(&mut self) -> Option<&'s str> {
        loop {
            let first = self.rest.chars().next()?;
            match first {
                '-' if self.rest.starts_with("--") => self.skip_past(2, "\n"),
                '/' if self.rest.starts_with("/*") => self.skip_past(2, "*/"),
                '\'' => self.skip_past(1, "'"),
                '"' => self.skip_past(1, "\""),
                '`' => self.skip_past(1, "`"),
                '[' => self.skip_past(1, "]"),
                '(' | ')' => {
                    self.depth = if first == '(' { self.depth + 1 } else { self.depth.saturating_sub(1) };
                    self.skip(1);
                }
                first if first.is_alphabetic() || first == '_' => {
                    let end = self
                        .rest
                        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                        .unwrap_or(self.rest.len());
                    let word = &self.rest[..end];
                    self.skip(end);
                    if self.depth == 0 {
                        return Some(word);
                    }
                }
                other => self.skip(other.len_utf8()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::{Access, access, starts_with};

    #[test]
    fn the_statements_own_verb_decides() {
        let reads = [
            "SELECT 1",
            "  -- insert\n select 1",
            "/* x */ VALUES (1)",
            "WITH a AS (DELETE FROM t) SELECT * FROM a",
            "with recursive \"insert\"(n) as (values(1)) select n from \"insert\"",
            "EXPLAIN QUERY PLAN DELETE FROM t",
            "PRAGMA table_info(t)",
            "",
        ];
        for sql in reads {
            assert_eq!(access(sql), Access::Read, "{sql}");
        }
        let writes = [
            "INSERT INTO t VALUES ('select')",
            "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a",
            "with a as (select ')' ) delete from t",
            "CREATE TABLE t (id)",
            "drop table t",
            "REPLACE INTO t VALUES (1)",
            "nonsense",
        ];
        for sql in writes {
            assert_eq!(access(sql), Access::Write, "{sql}");
        }
    }

    #[test]
    fn keywords_are_found_behind_comments() {
        assert!(starts_with("/**/ create\n--\ntable t(a)", &["CREATE", "TABLE"]));
        assert!(!starts_with("create index i on t(a)", &["CREATE", "TABLE"]));
    }

    proptest! {
        #[test]
        fn any_text_has_a_door_and_none_panics(sql in "\\PC{0,60}") {
            let _ = access(&sql);
        }
    }
}
