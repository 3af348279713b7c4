//! What was found: printed as it comes, and written as a page at the end.

use std::fmt::Write;
use std::path::Path;

/// The lines of the report, in order.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, String, Verdict)>,
}

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As promised.
    Pass,
    /// Not as promised.
    Fail,
    /// A figure without a promise.
    Figure,
    /// Could not be tried here.
    Skipped,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Figure => "",
            Self::Skipped => "skipped",
        }
    }
}

impl Report {
    /// Adds a line and prints it.
    pub(crate) fn add(&mut self, what: &str, found: String, verdict: Verdict) {
        println!("{:<8} {what}: {found}", verdict.text());
        self.rows.push((what.to_owned(), found, verdict));
    }

    /// Adds a line that holds or does not.
    pub(crate) fn check(&mut self, what: &str, holds: bool, found: String) {
        self.add(
            what,
            found,
            if holds { Verdict::Pass } else { Verdict::Fail },
        );
    }

    pub(crate) fn failures(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.2 == Verdict::Fail)
            .count()
    }

    /// Writes the page.
    pub(crate) fn write(
        &self,
        path: &Path,
        heading: &str,
        facts: &[(&str, String)],
    ) -> std::io::Result<()> {
        let mut page = format!("# {heading}\n\n");
        for (name, value) in facts {
            let _ = writeln!(page, "- {name}: {value}");
        }
        page += "\n| what | found | |\n|---|---|---|\n";
        for (what, found, verdict) in &self.rows {
            let found = found.replace('|', "\\|");
            let _ = writeln!(page, "| {what} | {found} | {} |", verdict.text());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, page)
    }
}
