//! `debros top`: the cluster each second on a terminal, or one frame of it where there is none.
//!
//! `dashboard` holds what is known, `view` draws it, this module asks the cluster and listens to the keyboard.

mod dashboard;
#[cfg(test)]
mod tests;
mod view;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use debros_sdk::{Client, Overview};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::arguments::Global;
use crate::commands::{failed, print};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::format::Format;
use dashboard::Dashboard;

/// The cluster is asked this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// A frame without a terminal is as wide as this.
const PLAIN_WIDTH: u16 = 100;
/// Key strokes that wait; more of them are lost, which nobody notices.
const KEYS_MAX: usize = 16;
/// The keyboard's thread looks this often whether it is to end.
const KEYS_LOOK: Duration = Duration::from_millis(100);

/// Shows the cluster until a key ends it; one frame with `once`, as JSON, or without a terminal.
pub(crate) async fn run(global: &Global, connection: &Connection, once: bool) -> Result<(), Failure> {
    let interactive = !once && global.format == Format::Table && std::io::stdout().is_terminal();
    if interactive { watch(&connection.client).await } else { frame(global, &connection.client).await }
}

async fn look(client: &Client) -> Result<Overview, String> {
    client.network().overview().await.map_err(|error| error.to_string())
}

/// One frame: two looks, for there are no rates in one.
async fn frame(global: &Global, client: &Client) -> Result<(), Failure> {
    let mut dashboard = Dashboard::default();
    let network = client.network();
    dashboard.take(Ok(network.overview().await.map_err(failed("ask the nodes"))?));
    sleep(INTERVAL).await;
    dashboard.take(Ok(network.overview().await.map_err(failed("ask the nodes"))?));
    print(global.format, || plain(&dashboard), || dashboard.json())
}

/// The frame as text, as high as what there is to show.
fn plain(dashboard: &Dashboard) -> String {
    drawn(dashboard, PLAIN_WIDTH, view::height(dashboard, PLAIN_WIDTH))
}

/// A frame of so many columns and lines, without colours.
fn drawn(dashboard: &Dashboard, width: u16, height: u16) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| view::draw(frame, dashboard));
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let cells = (0..buffer.area.width).filter_map(|x| buffer.cell((x, y)));
        cells.map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()
    };
    (0..buffer.area.height).map(line).collect::<Vec<_>>().join("\n")
}

/// The dashboard on a terminal.
async fn watch(client: &Client) -> Result<(), Failure> {
    let lost =
        |error: std::io::Error| Failure::Local { message: format!("cannot use the terminal: {error}") };
    let mut terminal = ratatui::try_init().map_err(lost)?;
    let (sender, mut keys) = mpsc::channel(KEYS_MAX);
    let ended = Arc::new(AtomicBool::new(false));
    let listening = std::thread::spawn({
        let ended = ended.clone();
        move || listen(&sender, &ended)
    });
    let mut dashboard = Dashboard::default();
    let outcome = async {
        let mut asked = Instant::now();
        let mut answer = Box::pin(look(client));
        let mut waiting = false;
        loop {
            terminal.draw(|frame| view::draw(frame, &dashboard))?;
            tokio::select! {
                key = keys.recv() => match key {
                    Some(Event::Key(key)) if !pressed(&mut dashboard, key) => return Ok(()),
                    Some(_) => {}
                    None => return Ok(()),
                },
                found = &mut answer, if !waiting => {
                    dashboard.take(found);
                    waiting = true;
                }
                () = sleep_until(asked + INTERVAL), if waiting => {
                    asked = Instant::now();
                    answer = Box::pin(look(client));
                    waiting = false;
                }
            }
        }
    }
    .await;
    ended.store(true, Ordering::Relaxed);
    ratatui::restore();
    // It looks within KEYS_LOOK; one that has panicked has nothing more to say.
    let _ = listening.join();
    outcome.map_err(lost)
}

/// Hands on what happens on the terminal. A thread of its own, for reading a terminal blocks.
fn listen(keys: &mpsc::Sender<Event>, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match event::poll(KEYS_LOOK) {
            Ok(true) => match event::read() {
                // Whoever types faster than it is read loses strokes.
                Ok(event) => drop(keys.try_send(event)),
                Err(_) => return,
            },
            Ok(false) => {}
            Err(_) => return,
        }
    }
}

/// What a key does; `false` ends it.
fn pressed(dashboard: &mut Dashboard, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Esc if dashboard.shows_help() => dashboard.toggle_help(),
        KeyCode::Esc => return false,
        KeyCode::Char('s') => dashboard.sort_by_next(),
        KeyCode::Char('r') => dashboard.reverse(),
        KeyCode::Char('?' | 'h') | KeyCode::F(1) => dashboard.toggle_help(),
        _ => {}
    }
    true
}
