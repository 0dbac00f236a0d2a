//! Tells Rust code from the words in it: comments and the insides of literals become blanks, so that a
//! rule about code never fires on a comment, and line numbers stay. A small scanner, not a parser.

/// The same text with comments and the insides of string and character literals blanked.
pub(super) fn without_words(text: &str) -> String {
    let mut scanner = Scanner { rest: text, code: String::with_capacity(text.len()), before: ' ' };
    while let Some(next) = scanner.rest.chars().next() {
        scanner.one(next);
    }
    scanner.code
}

/// True when the code holds the name as a whole word.
pub(super) fn names(code: &str, name: &str) -> bool {
    word_positions(code, name).next().is_some()
}

/// Where the name stands as a whole word, in bytes.
pub(super) fn word_positions<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).map(|(at, _)| at).filter(move |at| {
        let before = code[..*at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

struct Scanner<'a> {
    rest: &'a str,
    code: String,
    /// The last character kept: tells a raw string's `r` from the end of a name.
    before: char,
}

impl Scanner<'_> {
    fn one(&mut self, next: char) {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.blank(end);
        } else if self.rest.starts_with("/*") {
            self.blank(block_comment_bytes(self.rest));
        } else if let Some(bytes) = self.raw_string_bytes() {
            self.blank(bytes);
        } else if next == '"' {
            self.blank(quoted_bytes(self.rest, '"'));
        } else if next == '\'' && is_character(self.rest) {
            self.blank(quoted_bytes(self.rest, '\''));
        } else {
            self.keep(next);
        }
    }

    fn keep(&mut self, next: char) {
        self.code.push(next);
        self.before = next;
        self.rest = &self.rest[next.len_utf8()..];
    }

    fn blank(&mut self, bytes: usize) {
        let (words, rest) = self.rest.split_at(bytes);
        self.code.extend(words.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.before = ' ';
        self.rest = rest;
    }

    /// The length of a raw string that starts here (`r"`, `r#"`; a prefix `b` or `c` was kept already).
    fn raw_string_bytes(&self) -> Option<usize> {
        let inside_name = self.before.is_alphanumeric() && !matches!(self.before, 'b' | 'c');
        let after = self.rest.strip_prefix('r').filter(|_| !inside_name && self.before != '_')?;
        let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
        let body = after[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = body.find(&end).map_or(body.len(), |at| at + end.len());
        Some(1 + hashes + 1 + length)
    }
}

/// Block comments nest in Rust.
fn block_comment_bytes(text: &str) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if rest.starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
        } else {
            at += 1;
        }
    }
    at.min(text.len())
}

fn quoted_bytes(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character literal, not a lifetime: `'x'` or `'\n'`.
fn is_character(text: &str) -> bool {
    let mut after = text.chars().skip(1);
    match after.next() {
        Some('\\') => true,
        Some(_) => after.next() == Some('\''),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::without_words;

    #[test]
    fn words_go_and_code_and_lines_stay() {
        let cases = [
            ("a(); // libp2p\nb()", "a();          \nb()"),
            ("a /* x /* y */ z */ b", "a                   b"),
            ("f(\"a\\\"b\", c)", "f(      , c)"),
            ("f(r#\"a \" b\"#, c)", "f(          , c)"),
            ("f(br\"x\", c)", "f(b    , c)"),
            ("fn f<'a>(x: &'a str) -> char { 'x' }", "fn f<'a>(x: &'a str) -> char {     }"),
            ("'\\'' + '\"'", "     +    "),
            ("for r in x", "for r in x"),
            ("\"a\nb\" c", "  \n   c"),
        ];
        for (text, expected) in cases {
            assert_eq!(without_words(text), expected, "{text}");
        }
    }

    #[test]
    fn what_never_ends_is_words_to_the_end() {
        for text in ["\"open", "/* open", "r#\"open", "'\\"] {
            assert!(without_words(text).trim().is_empty(), "{text}");
        }
    }
}
