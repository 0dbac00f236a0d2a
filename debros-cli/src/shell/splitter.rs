//! Where a statement ends. A semicolon ends it unless it stands in a literal, a quoted name, a
//! comment, or the body of a trigger. Plain data: text in, statements out.

/// Text typed so far, of which complete statements can be taken.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    buffer: String,
}

impl Splitter {
    /// Adds a line.
    pub(crate) fn push_line(&mut self, line: &str) {
        self.buffer.push_str(line);
        self.buffer.push('\n');
    }

    /// Takes the next complete statement, without its semicolon.
    pub(crate) fn take(&mut self) -> Option<String> {
        loop {
            let end = end_of_statement(&self.buffer)?;
            let rest = self.buffer.split_off(end);
            let mut statement = std::mem::replace(&mut self.buffer, rest);
            statement.pop();
            if !is_blank(&statement) {
                return Some(statement.trim().to_owned());
            }
        }
    }

    /// Takes what is left, complete or not; for the end of a file.
    pub(crate) fn take_rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.buffer);
        (!is_blank(&rest)).then(|| rest.trim().to_owned())
    }

    /// Whether a statement has begun.
    pub(crate) fn has_begun(&self) -> bool {
        !is_blank(&self.buffer)
    }

    /// Forgets what was typed.
    pub(crate) fn clear(&mut self) {
        self.buffer.clear();
    }
}

/// A piece of SQL text, as far as ends of statements are concerned.
enum Token<'s> {
    Word(&'s str),
    Semicolon,
    /// A literal, a quoted name, an operator.
    Other,
    /// White space or a comment.
    Blank,
    /// A literal or comment that is not closed.
    Unclosed,
}

/// The first token and its length in bytes.
fn token(text: &str) -> Option<(Token<'_>, usize)> {
    let first = text.chars().next()?;
    let closed_by = |opening: usize, end: &str| text[opening..].find(end).map(|at| opening + at + end.len());
    let quoted =
        |end: &str| closed_by(1, end).map_or((Token::Unclosed, text.len()), |length| (Token::Other, length));
    Some(match first {
        ';' => (Token::Semicolon, 1),
        '\'' => quoted("'"),
        '"' => quoted("\""),
        '`' => quoted("`"),
        '[' => quoted("]"),
        '-' if text.starts_with("--") => (Token::Blank, closed_by(2, "\n").unwrap_or(text.len())),
        '/' if text.starts_with("/*") => {
            closed_by(2, "*/").map_or((Token::Unclosed, text.len()), |length| (Token::Blank, length))
        }
        first if first.is_whitespace() => (Token::Blank, first.len_utf8()),
        first if first.is_alphanumeric() || first == '_' => {
            let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
            (Token::Word(&text[..end]), end)
        }
        other => (Token::Other, other.len_utf8()),
    })
}

/// Where the first statement ends: behind its semicolon.
fn end_of_statement(text: &str) -> Option<usize> {
    let mut at = 0;
    // The first words decide whether this is a trigger, whose body ends with `END;`.
    let mut words = 0;
    let mut creates = false;
    let mut trigger = false;
    let mut after_semicolon = false;
    let mut after_end = false;
    while let Some((token, length)) = token(&text[at..]) {
        at += length;
        match token {
            Token::Blank => {}
            Token::Unclosed => return None,
            Token::Semicolon if !trigger || after_end => return Some(at),
            Token::Semicolon => after_semicolon = true,
            Token::Word(word) => {
                let is = |other: &str| word.eq_ignore_ascii_case(other);
                creates |= words == 0 && is("create");
                trigger |= creates && words <= 2 && is("trigger");
                // Only an END behind a semicolon closes the body; that of a CASE does not.
                after_end = after_semicolon && is("end");
                after_semicolon = false;
                words += 1;
            }
            Token::Other => {
                after_semicolon = false;
                after_end = false;
            }
        }
    }
    None
}

/// Whether there is nothing but white space and comments.
fn is_blank(text: &str) -> bool {
    let mut at = 0;
    while let Some((token, length)) = token(&text[at..]) {
        if !matches!(token, Token::Blank) {
            return false;
        }
        at += length;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::Splitter;

    fn split(text: &str) -> (Vec<String>, Option<String>) {
        let mut splitter = Splitter::default();
        let mut statements = Vec::new();
        for line in text.lines() {
            splitter.push_line(line);
            while let Some(statement) = splitter.take() {
                statements.push(statement);
            }
        }
        (statements, splitter.take_rest())
    }

    #[test]
    fn a_semicolon_ends_a_statement_only_where_sql_says_so() {
        let (statements, rest) = split(
            "SELECT ';' , \"a;b\", [c;d] -- e;\n, /* f; */ 1; ;\n-- only a comment;\nSELECT\n2;SELECT 3",
        );
        assert_eq!(statements.len(), 2, "{statements:?}");
        assert!(statements[0].starts_with("SELECT ';'") && statements[0].ends_with('1'));
        assert_eq!(statements[1], "-- only a comment;\nSELECT\n2");
        assert_eq!(rest.as_deref(), Some("SELECT 3"));
    }

    #[test]
    fn a_trigger_ends_with_its_body() {
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN\n\
                       UPDATE a SET b = CASE WHEN 1 THEN 2 END;\nDELETE FROM c;\nEND;";
        let (statements, rest) = split(&format!("{trigger}\nSELECT 1;"));
        assert_eq!(statements, [&trigger[..trigger.len() - 1], "SELECT 1"]);
        assert_eq!(rest, None);
    }

    #[test]
    fn an_open_literal_waits_for_more() {
        let (statements, rest) = split("SELECT 'a;\nb';");
        assert_eq!((statements, rest), (vec!["SELECT 'a;\nb'".to_owned()], None));
    }

    proptest! {
        #[test]
        fn any_text_splits_without_panic_and_loses_no_word(text in "[a-z;'\"/*\\-é \n]{0,80}") {
            let (statements, rest) = split(&text);
            let kept: usize = statements.iter().chain(&rest).map(|part| part.len()).sum();
            prop_assert!(kept <= text.len() + 1);
            prop_assert!(statements.iter().all(|statement| !statement.is_empty()));
        }
    }
}
