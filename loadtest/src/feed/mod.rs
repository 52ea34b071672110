//! `spreadly-storm feed`: a recorded capture, read twice (once for the markets' precision, once to
//! convert) and appended to a file that the hub watches, at the pace it was recorded.

mod convert;
mod orders;

use crate::venues::{Format, Message, Reader};
use clap::Args;
use convert::{Converter, Counts, Event, MarketFacts};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Faulty lines and gaps printed one by one; after that they are only counted.
const REMARKS_PRINTED: u64 = 20;
/// Lines looked at to guess the format: acks and banners come first.
const GUESS_LINES: usize = 64;
/// At full speed events leave in blocks, since a write each is what would be measured otherwise.
const BLOCK_BYTES: usize = 64 * 1024;
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spreadly-storm feed KRAKEN.ws.50.0 --to folder:feeds
      at the recorded pace, format guessed from the content
  spreadly-storm feed binance_depth.jsonl --snapshot depth.json --to folder:feeds --speed max
      differences spliced onto the REST book, as fast as the disk takes them
  spreadly-storm feed KRAKEN.ws.50.0 --to folder:feeds --speed 10 --ids
      ten times as fast; feeding it again changes nothing, since every event has a stable id")]
pub struct FeedArgs {
    /// The recorded capture, one message a line
    input: PathBuf,
    /// Whose capture it is; guessed from its first lines when absent
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The REST book that differences are spliced onto (binance, bitstamp)
    #[arg(long, value_name = "REST.json")]
    snapshot: Option<PathBuf>,
    /// Where to: `folder:PATH`, a folder that a hub watches (`feeds.files.path`)
    #[arg(long, value_name = "folder:PATH")]
    to: Target,
    /// The file in the folder [default: the capture's name with .ndjson]
    #[arg(long, value_name = "NAME.ndjson")]
    file: Option<String>,
    /// 1 is the recorded pace, N is N times as fast, `max` doesn't wait
    #[arg(long, default_value = "1")]
    speed: Speed,
    /// Stop after this many events of books and orders
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Give each event a stable id, so that feeding it twice counts once
    #[arg(long)]
    ids: bool,
}

#[derive(Debug, Clone)]
struct Target(PathBuf);

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("folder", path)) if !path.is_empty() => Ok(Self(PathBuf::from(path))),
            _ => Err("write folder:PATH".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Speed {
    Times(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(times) if times.is_finite() && times > 0.0 => Ok(Self::Times(times)),
            _ => Err("write a number above 0, or max".to_owned()),
        }
    }
}

#[derive(Debug, Error)]
pub enum FeedError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("can't find out whose capture {0} is: say --format")]
    UnknownFormat(PathBuf),
    #[error("{0}")]
    Usage(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FeedError {
    let path = path.to_owned();
    move |source| FeedError::File { path, source }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    format: &'static str,
    file: PathBuf,
    events: u64,
    bytes: u64,
    seconds: f64,
    refused_lines: u64,
    #[serde(flatten)]
    counts: Counts,
}

/// Feeds the capture and prints the summary.
///
/// # Errors
/// When a file can't be read or written, or the capture isn't understood as a whole.
pub fn run(args: &FeedArgs) -> Result<(), FeedError> {
    let format = match args.format {
        Some(format) => format,
        None => guess(&args.input)?,
    };
    let file = output_path(args)?;
    let mut survey = survey(args, format)?;
    let input_name = args.input.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let id_prefix = args.ids.then(|| format!("{}/{input_name}", format.name()));
    let (mut converter, market_events) =
        Converter::new(&survey.markets, id_prefix).map_err(FeedError::Usage)?;
    let mut out = Output::open(file, args.speed)?;
    for event in &market_events {
        out.write(event)?;
    }
    let mut remarks = Remarks::default();
    if let Some(Message::Book(book)) = survey.snapshot.take() {
        // Line 0: the snapshot is of another file.
        match converter.update(0, book) {
            Ok(events) => out.write_all(&events)?,
            Err(error) => return Err(FeedError::Usage(format!("the REST book: {error}"))),
        }
    }
    let mut refused_lines = 0;
    let mut reader = Reader::new(format);
    for (number, line) in lines(&args.input)? {
        let line = line.map_err(at(&args.input))?;
        match convert_line(&mut reader, &mut converter, number, &line) {
            Ok(events) => {
                for event in &events {
                    if limit_reached(args.limit, &out, &market_events) {
                        break;
                    }
                    out.write(event)?;
                }
            }
            Err(reason) => {
                refused_lines += 1;
                remarks.print(&format!("line {number}: {reason}"));
            }
        }
        for remark in converter.remarks.drain(..) {
            remarks.print(&remark);
        }
        if limit_reached(args.limit, &out, &market_events) {
            break;
        }
        out.progress();
    }
    converter.finish();
    for remark in converter.remarks.drain(..) {
        remarks.print(&remark);
    }
    remarks.finish();
    out.flush()?;
    let summary = Summary {
        format: format.name(),
        file: out.path,
        events: out.events,
        bytes: out.bytes,
        seconds: out.began.elapsed().as_secs_f64(),
        refused_lines,
        counts: converter.counts,
    };
    println!("{}", serde_json::to_string(&summary).expect("a plain struct always serializes"));
    Ok(())
}

fn limit_reached(limit: Option<u64>, out: &Output, market_events: &[Event]) -> bool {
    limit.is_some_and(|limit| out.events - market_events.len() as u64 >= limit)
}

fn convert_line(
    reader: &mut Reader,
    converter: &mut Converter,
    number: u64,
    line: &str,
) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    for message in reader.line(line).map_err(|error| error.to_string())? {
        match message {
            Message::Book(update) => {
                events.extend(converter.update(number, update).map_err(|e| e.to_string())?);
            }
            Message::Order(step) => {
                events.extend(converter.order(number, &step).map_err(|e| e.to_string())?);
            }
            Message::ConnectionSequence(sequence) => converter.connection_sequence(sequence),
        }
    }
    Ok(events)
}

fn output_path(args: &FeedArgs) -> Result<PathBuf, FeedError> {
    let name = match &args.file {
        Some(name) => name.clone(),
        None => {
            let stem = args.input.file_stem().unwrap_or_default().to_string_lossy();
            format!("{stem}.ndjson")
        }
    };
    if name.contains('/') || !name.ends_with(".ndjson") {
        return Err(FeedError::Usage(format!("--file {name}: a plain name that ends in .ndjson")));
    }
    fs::create_dir_all(&args.to.0).map_err(at(&args.to.0))?;
    Ok(args.to.0.join(name))
}

type Lines = Box<dyn Iterator<Item = (u64, io::Result<String>)>>;

fn lines(path: &Path) -> Result<Lines, FeedError> {
    let file = File::open(path).map_err(at(path))?;
    let lines = BufReader::new(file).lines().filter(|line| !matches!(line, Ok(l) if l.is_empty()));
    Ok(Box::new((1..).zip(lines)))
}

fn guess(path: &Path) -> Result<Format, FeedError> {
    for (_, line) in lines(path)?.take(GUESS_LINES) {
        if let Some(format) = Format::guess(&line.map_err(at(path))?) {
            return Ok(format);
        }
    }
    Err(FeedError::UnknownFormat(path.to_owned()))
}

/// What has to be known before the first event can be written.
struct Survey {
    markets: BTreeMap<String, MarketFacts>,
    snapshot: Option<Message>,
}

fn survey(args: &FeedArgs, format: Format) -> Result<Survey, FeedError> {
    let mut markets: BTreeMap<String, MarketFacts> = BTreeMap::new();
    let mut see = |message: &Message| match message {
        Message::Book(update) => markets.entry(update.symbol.clone()).or_default().see(update),
        Message::Order(step) => markets.entry(step.symbol.clone()).or_default().see_order(step),
        Message::ConnectionSequence(_) => {}
    };
    let mut reader = Reader::new(format);
    for (_, line) in lines(&args.input)? {
        // Faulty lines are reported by the second reading.
        for message in reader.line(&line.map_err(at(&args.input))?).unwrap_or_default() {
            see(&message);
        }
    }
    let mut snapshot = None;
    if let Some(path) = &args.snapshot {
        let text = fs::read_to_string(path).map_err(at(path))?;
        // The reader has seen the differences, so it knows whose book this is.
        let messages = reader
            .line(&text)
            .map_err(|error| FeedError::Usage(format!("{}: {error}", path.display())))?;
        snapshot = messages.into_iter().next();
        match &snapshot {
            Some(message) => see(message),
            None => {
                let path = path.display();
                return Err(FeedError::Usage(format!("{path} is no REST book of this venue")));
            }
        }
        if markets.len() != 1 {
            let count = markets.len();
            return Err(FeedError::Usage(format!(
                "--snapshot is one market's book, and the capture has {count}: put each book into \
                 the capture as a combined-stream line"
            )));
        }
    }
    if markets.is_empty() {
        return Err(FeedError::Usage(format!(
            "{} has no book messages of {}",
            args.input.display(),
            format.name()
        )));
    }
    Ok(Survey { markets, snapshot })
}

/// The file being appended to. Each write ends at a line's end, so a hub never reads half an event
/// for longer than one `write` takes.
struct Output {
    path: PathBuf,
    file: File,
    speed: Speed,
    block: Vec<u8>,
    events: u64,
    bytes: u64,
    began: Instant,
    /// The recorded time of the first paced event.
    origin: Option<(i64, Instant)>,
    reported_at: Instant,
}

impl Output {
    fn open(path: PathBuf, speed: Speed) -> Result<Self, FeedError> {
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(at(&path))?;
        let now = Instant::now();
        let block = Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4);
        let origin = None;
        Ok(Self {
            path,
            file,
            speed,
            block,
            events: 0,
            bytes: 0,
            began: now,
            origin,
            reported_at: now,
        })
    }

    fn write_all(&mut self, events: &[Event]) -> Result<(), FeedError> {
        events.iter().try_for_each(|event| self.write(event))
    }

    fn write(&mut self, event: &Event) -> Result<(), FeedError> {
        self.wait_until_due(event.due)?;
        self.block.extend_from_slice(event.json.as_bytes());
        self.block.push(b'\n');
        self.events += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Absolute deadlines, so that a late event doesn't delay all that follow.
    fn wait_until_due(&mut self, due: Option<i64>) -> Result<(), FeedError> {
        let (Speed::Times(times), Some(due)) = (self.speed, due) else {
            return Ok(());
        };
        let (first, began) = *self.origin.get_or_insert_with(|| (due, Instant::now()));
        let micros = u64::try_from(due - first).unwrap_or(0);
        let deadline = began + Duration::from_micros(micros).div_f64(times);
        let now = Instant::now();
        if deadline > now {
            self.flush()?;
            std::thread::sleep(deadline - now);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), FeedError> {
        self.file.write_all(&self.block).map_err(at(&self.path))?;
        self.bytes += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    fn progress(&mut self) {
        if self.reported_at.elapsed() >= PROGRESS_EVERY {
            self.reported_at = Instant::now();
            eprintln!("{} events after {:.0} s", self.events, self.began.elapsed().as_secs_f64());
        }
    }
}

/// Remarks on stderr, up to a number that a person reads.
#[derive(Default)]
struct Remarks(u64);

impl Remarks {
    fn print(&mut self, remark: &str) {
        self.0 += 1;
        if self.0 <= REMARKS_PRINTED {
            eprintln!("{remark}");
        }
    }

    fn finish(&self) {
        if self.0 > REMARKS_PRINTED {
            eprintln!("… and {} more", self.0 - REMARKS_PRINTED);
        }
    }
}
