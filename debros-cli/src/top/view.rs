//! The dashboard drawn: nodes, who leads, what is wrong, what happened. Everything fits into 80 by 24, and shows more
//! where there is more room. What is wrong gets its room first.

use std::time::{Duration, SystemTime};

use debros_sdk::Health;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Row as TableRow, Table};

use super::dashboard::{Alarm, Dashboard, Group, Rates, Row};
use crate::table::{ago, broken, harmless};

/// Title, the head of the table and the line of keys.
const FIXED_LINES: u16 = 3;
/// What happened is worth so many lines where there is room.
const HAPPENED_LINES: u16 = 5;
/// Lines that a frame without a terminal takes at most.
const PLAIN_LINES_MAX: u16 = 200;

/// What is told of an alarm stands this far in, behind the name of its check.
const ALARM_INDENT: usize = 16;

const HELP: &str = "\
sql/s kv/s   clients' requests that the node answered in the last second, where they
             sent them; p50 and p99 are upper bounds of how long they took
msg in/out   messages taken in from its clients, and handed to them
fail/s       requests of SQL and storage that failed, by whose fault ever
*            leads the meta group, which keeps the cluster's map
away         does not answer; `disk` then tells when it was last seen
lag          entries that the slowest replica lacks

q quit   s sort by the next column   r reverse   ? this help";

/// How high a frame of this width is that shows everything.
pub(crate) fn height(dashboard: &Dashboard, width: u16) -> u16 {
    let alarms: usize = dashboard.alarms().iter().map(|alarm| alarm_lines(alarm, width).len()).sum();
    let happened = dashboard.happened().count().min(usize::from(HAPPENED_LINES));
    let lines = dashboard.rows().len() + dashboard.groups().len() + alarms.max(1) + happened.max(1) + 4;
    u16::try_from(lines).unwrap_or(PLAIN_LINES_MAX).min(PLAIN_LINES_MAX) + FIXED_LINES
}

/// Draws the frame.
pub(crate) fn draw(frame: &mut Frame<'_>, dashboard: &Dashboard) {
    let (rows, groups, alarms) = (dashboard.rows(), dashboard.groups(), dashboard.alarms());
    let alarm_lines: Vec<Line<'_>> =
        alarms.iter().flat_map(|alarm| alarm_lines(alarm, frame.area().width)).collect();
    let room = frame.area().height.saturating_sub(FIXED_LINES);
    let [nodes, led, wrong, happened] = shares(
        room,
        [rows.len(), groups.len() + 1, alarm_lines.len().max(1) + 1, usize::from(HAPPENED_LINES) + 1],
    );
    let [title, table, led, wrong, happened, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(nodes + 1),
        Constraint::Length(led),
        Constraint::Length(wrong),
        Constraint::Min(happened),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(headline(dashboard)), title);
    draw_nodes(frame, table, &rows);
    draw_part(frame, led, &format!("leaders of {} groups", groups.len()), group_lines(&groups, led.height));
    let wrong_title =
        if alarms.is_empty() { "nothing is wrong".to_owned() } else { format!("wrong: {}", alarms.len()) };
    draw_part(frame, wrong, &wrong_title, alarm_lines);
    let told =
        dashboard.happened().map(|(at, told)| Line::from(format!("{:>12}  {}", ago(*at), harmless(told))));
    draw_part(frame, happened, "what happened", told.collect());
    let sorted = dashboard.sorted_by().as_str();
    frame.render_widget(
        Paragraph::new(format!("q quit   s sort (now: {sorted})   r reverse   ? help")).style(dim()),
        keys,
    );
    if dashboard.shows_help() {
        draw_help(frame);
    }
}

/// How many of these lines each part gets: what is wrong first, then nodes, leaders, and what happened.
fn shares(room: u16, [nodes, led, wrong, happened]: [usize; 4]) -> [u16; 4] {
    let mut left = usize::from(room);
    let mut take = |wanted: usize, keeping: usize| {
        let taken = wanted.min(left.saturating_sub(keeping));
        left -= taken;
        u16::try_from(taken).unwrap_or(u16::MAX)
    };
    // Some lines of each part are kept for those that come later.
    let nodes_first = take(nodes.min(8), 8);
    let wrong = take(wrong, 5);
    let led = take(led, 3);
    let nodes_more = take(nodes.saturating_sub(usize::from(nodes_first)), 3);
    [nodes_first + nodes_more, led, wrong, take(happened, 0)]
}

fn headline(dashboard: &Dashboard) -> Line<'_> {
    let Some((cluster, epoch)) = dashboard.cluster() else {
        return Line::from(match dashboard.trouble() {
            Some(reason) => format!("debros top: no node answers: {}", harmless(reason)),
            None => "debros top: asking the cluster".to_owned(),
        });
    };
    let (well, unwell, away) = dashboard.counts();
    let cluster: String = cluster.chars().take(8).collect();
    let mut parts = vec![
        Span::styled("debros top", bold()),
        Span::raw(format!("  cluster {cluster}  epoch {epoch}  {} nodes: ", well + unwell + away)),
        Span::styled(format!("{well} well"), coloured(Color::Green)),
        Span::styled(
            format!("  {unwell} not well"),
            if unwell > 0 { coloured(Color::Yellow) } else { dim() },
        ),
        Span::styled(format!("  {away} away"), if away > 0 { coloured(Color::Red) } else { dim() }),
    ];
    if dashboard.trouble().is_some() {
        parts.push(Span::styled("  no node answers now: this is old", coloured(Color::Red)));
    }
    Line::from(parts)
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, rows: &[Row]) {
    let head =
        ["node", "state", "leads", "sql/s", "p50", "p99", "kv/s", "p99", "msg in/out", "fail/s", "disk"];
    let widths = [4, 9, 5, 5, 5, 5, 5, 5, 10, 6, 11].map(Constraint::Length);
    let lines = rows.iter().map(|row| {
        let (state, style) = match row.health {
            Some(Health::Healthy) => ("well", coloured(Color::Green)),
            Some(Health::Degraded) => ("degraded", coloured(Color::Yellow)),
            Some(Health::Unhealthy) => ("unhealthy", coloured(Color::Red)),
            None => ("away", coloured(Color::Red).add_modifier(Modifier::BOLD)),
        };
        let name = format!("{}{}", row.node, if row.leads_meta { "*" } else { "" });
        if row.health.is_none() {
            let seen = row.last_seen.map_or_else(|| "never seen".to_owned(), ago_in_short);
            let mut cells = vec![name, state.to_owned()];
            cells.extend(std::iter::repeat_n(String::new(), head.len() - 3));
            cells.push(seen);
            return TableRow::new(cells).style(style);
        }
        let messages = match row.messages.per_second {
            Some(published) => format!("{}/{}", rate(published), rate(row.messages.delivered_per_second)),
            None => "-".to_owned(),
        };
        TableRow::new(vec![
            name,
            state.to_owned(),
            row.leads.to_string(),
            per_second(&row.sql),
            bound(row.sql.p50),
            bound(row.sql.p99),
            per_second(&row.storage),
            bound(row.storage.p99),
            messages,
            rate(row.failed_per_second),
            row.disk_free.map_or_else(|| "-".to_owned(), bytes),
        ])
        .style(style)
    });
    let table = Table::new(lines, widths).header(TableRow::new(head).style(bold())).column_spacing(1);
    frame.render_widget(table, area);
}

fn draw_part(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    let block = Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(format!(" {title} "), bold()))
        .border_style(dim());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// The groups; those that are not well first where there is not room for all.
fn group_lines(groups: &[Group], height: u16) -> Vec<Line<'static>> {
    let room = usize::from(height.saturating_sub(1));
    let mut shown: Vec<&Group> = groups.iter().collect();
    if shown.len() > room {
        shown.sort_by_key(|group| (group.leader != 0, std::cmp::Reverse(group.lag)));
    }
    let line = |group: &Group| {
        let leader = match group.leader {
            0 => Span::styled("no leader", coloured(Color::Red)),
            leader => Span::raw(format!("node {leader}")),
        };
        let voters = group.voters.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let padding = " ".repeat(10_usize.saturating_sub(leader.content.chars().count()));
        Line::from(vec![
            Span::raw(format!("{:<32}", shortened(&harmless(&group.name), 31))),
            leader,
            Span::raw(format!("{padding} term {:<6} lag {:<6} voters {voters}", group.term, group.lag)),
        ])
    };
    let mut lines: Vec<Line<'static>> = shown.iter().take(room).map(|group| line(group)).collect();
    if shown.len() > room && room > 0 {
        lines[room - 1] = Line::from(format!("and {} more", shown.len() + 1 - room));
    }
    lines
}

/// What is wrong, and below it what to do.
fn alarm_lines(alarm: &Alarm, width: u16) -> Vec<Line<'static>> {
    let colour = if alarm.status == Health::Unhealthy { Color::Red } else { Color::Yellow };
    let nodes = alarm.nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let what = format!("{:<15} ", shortened(&harmless(&alarm.check), 15));
    let room = usize::from(width).saturating_sub(ALARM_INDENT + 3).max(20);
    let told = broken(&format!("at {nodes}: {}", harmless(&alarm.message)), room + 3);
    let mut lines: Vec<Line<'static>> =
        told.into_iter().map(|line| Line::from(format!("{:ALARM_INDENT$}{line}", ""))).collect();
    if let Some(first) = lines.first_mut() {
        let told = first.spans.iter().map(|span| span.content.trim_start()).collect::<String>();
        let style = coloured(colour).add_modifier(Modifier::BOLD);
        *first = Line::from(vec![Span::styled(what, style), Span::raw(told)]);
    }
    for (index, line) in broken(&harmless(&alarm.next_step), room).into_iter().enumerate() {
        let lead = if index == 0 { "->" } else { "  " };
        lines.push(Line::styled(format!("{:ALARM_INDENT$}{lead} {line}", ""), dim()));
    }
    lines
}

fn draw_help(frame: &mut Frame<'_>) {
    let (width, height) = (78, 12);
    let area = frame.area();
    let place = Rect {
        x: area.width.saturating_sub(width) / 2,
        y: area.height.saturating_sub(height) / 2,
        width: width.min(area.width),
        height: height.min(area.height),
    };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" help ")), place);
}

fn per_second(rates: &Rates) -> String {
    rates.per_second.map_or_else(|| "-".to_owned(), rate)
}

/// A rate in at most four characters.
fn rate(rate: f64) -> String {
    match rate {
        ..0.05 => "0".to_owned(),
        ..9.95 => format!("{rate:.1}"),
        ..999.5 => format!("{rate:.0}"),
        ..99_500.0 => format!("{:.0}k", rate / 1000.0),
        _ => format!("{:.1}M", rate / 1_000_000.0),
    }
}

/// The upper bound of a latency.
fn bound(bound: Option<Option<Duration>>) -> String {
    match bound {
        None => "-".to_owned(),
        Some(None) => ">8s".to_owned(),
        Some(Some(bound)) if bound < Duration::from_millis(1) => format!("{}us", bound.as_micros()),
        Some(Some(bound)) if bound < Duration::from_secs(1) => format!("{}ms", bound.as_millis()),
        Some(Some(bound)) => format!("{}s", bound.as_secs()),
    }
}

fn bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20)];
    let (unit, shift) = units.into_iter().find(|(_, shift)| bytes >> shift > 0).unwrap_or(("KiB", 10));
    format!("{} {unit}", bytes >> shift)
}

fn ago_in_short(at: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        _ => format!("{}h ago", seconds / 3600),
    }
}

fn shortened(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

fn coloured(colour: Color) -> Style {
    // https://no-color.org
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return Style::new();
    }
    Style::new().fg(colour)
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}
