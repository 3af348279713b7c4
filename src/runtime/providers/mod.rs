//! Execution providers: what executes a model, chosen once and reported truthfully.
//!
//! Each is one row of `ROWS`; a new one is a file with its row. Invariants: nobody outside asks which provider it is,
//! only what its row says; and a provider that was asked for by name either registers or fails the load. ONNX Runtime's
//! own default, to fall back to the CPU without a word, is never used.

mod cpu;
mod cuda;
mod openvino;
mod row;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use ort::ep::ExecutionProviderDispatch;
use ort::memory::MemoryInfo;

pub use row::CudaConfig;
use row::Row;
pub(super) use row::{Explanation, Options};

/// Every provider, in the order in which they are named to users.
static ROWS: [&Row; 3] = [&cpu::ROW, &cuda::ROW, &openvino::ROW];

/// The device that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// A GPU where one can be had, else the CPU; the log and `/ready` say which and why.
    #[default]
    Auto,
    /// This provider; a failure to get it fails the start.
    Only(ExecutionProvider),
}

impl Device {
    /// The CPU, with ONNX Runtime's own kernels.
    pub const CPU: Self = Self::Only(ExecutionProvider::CPU);

    /// Whether it is a device with memory of its own, beside the CPU, for sure.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Only(provider) if provider.is_gpu())
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let word = text.trim().to_ascii_lowercase();
        if word == "auto" {
            return Ok(Self::Auto);
        }
        let (name, index) = match word.split_once(':') {
            None => (word.as_str(), Some(0)),
            Some((name, index)) => {
                let digits = index.bytes().all(|byte| byte.is_ascii_digit());
                (name, index.parse().ok().filter(|_| digits))
            }
        };
        let is_numbered = word.contains(':');
        let row = ROWS
            .iter()
            .find(|row| row.word == name && (row.is_numbered || !is_numbered));
        match (row, index) {
            (Some(row), Some(index)) => Ok(Self::Only(ExecutionProvider { row, index })),
            _ => Err(format!("'{text}' is not a device; write {}", choices())),
        }
    }
}

/// What can be written, for people.
fn choices() -> String {
    let mut words = vec!["auto".to_owned()];
    for row in ROWS {
        words.push(row.word.to_owned());
        if row.is_numbered {
            words.push(format!("{}:N (for example {}:0)", row.word, row.word));
        }
    }
    let last = words.pop().unwrap_or_default();
    format!("{} or {last}", words.join(", "))
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Only(provider) => provider.fmt(formatter),
        }
    }
}

/// The provider that really executes a model, and which of its devices.
#[derive(Clone, Copy)]
pub struct ExecutionProvider {
    row: &'static Row,
    index: u16,
}

impl PartialEq for ExecutionProvider {
    fn eq(&self, other: &Self) -> bool {
        (self.row.word, self.index) == (other.row.word, other.index)
    }
}

impl Eq for ExecutionProvider {}

/// As users write it.
impl fmt::Display for ExecutionProvider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.row.word)?;
        if self.row.is_numbered {
            write!(formatter, ":{}", self.index)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ExecutionProvider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl ExecutionProvider {
    /// ONNX Runtime's own kernels on the CPU.
    pub const CPU: Self = Self {
        row: &cpu::ROW,
        index: 0,
    };

    /// The providers to try for `device`, in order. More than one means that falling back was asked for (`auto`).
    #[must_use]
    pub fn candidates(device: Device) -> Vec<Self> {
        match device {
            Device::Only(provider) => vec![provider],
            Device::Auto => {
                let preferred = Self::preferred().filter(|provider| (provider.row.is_built_in)());
                preferred.chain([Self::CPU]).collect()
            }
        }
    }

    /// Why `device` does not even try what it prefers, if so.
    pub(super) fn passed_over(device: Device) -> Option<&'static str> {
        // What was not asked for, the library is not asked about.
        if device != Device::Auto {
            return None;
        }
        let missing = Self::preferred().find(|provider| !(provider.row.is_built_in)());
        missing.map(|provider| provider.row.errors.not_built_in)
    }

    fn preferred() -> impl Iterator<Item = Self> {
        let rows = ROWS.iter().filter(|row| row.is_preferred);
        rows.map(|row| Self { row, index: 0 })
    }

    /// The GPU of this index, for tests that want one where there is none.
    #[cfg(feature = "testkit")]
    pub(super) fn gpu(index: u16) -> Option<Self> {
        let row = ROWS.iter().find(|row| row.is_gpu)?;
        Some(Self { row, index })
    }

    /// Whether it executes on a device with memory of its own, beside the CPU.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        self.row.is_gpu
    }

    /// Whether settings that `tune` measured, with ONNX Runtime's CPU kernels, are taken for it.
    #[must_use]
    pub fn takes_tuned_settings(self) -> bool {
        self.row.takes_tuned_settings
    }

    /// Which of its devices, counted from 0.
    #[must_use]
    pub fn index(self) -> u16 {
        self.index
    }

    /// The name in ONNX Runtime, as `ml_model_info` reports it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row.name
    }

    /// The device that it executes on.
    #[must_use]
    pub fn device(self) -> Device {
        Device::Only(self)
    }

    /// What to register with a session; the CPU is always there and needs nothing.
    pub(super) fn registration(self, options: Options) -> Vec<ExecutionProviderDispatch> {
        (self.row.registration)(self.index, options)
    }

    /// The host's memory from which its device copies best.
    ///
    /// # Errors
    /// When it has no such memory.
    pub(super) fn host_memory(self) -> Result<MemoryInfo<'static>, ort::Error> {
        (self.row.host_memory)(self.index)
    }

    /// Whether the provider, and not the model or the request, is what an error is about.
    pub(super) fn is_concerned(self, complaint: &str) -> bool {
        (self.row.errors.is_concerned)(complaint)
    }

    /// Whether memory did not suffice.
    pub(super) fn is_out_of_memory(self, complaint: &str) -> bool {
        (self.row.errors.is_out_of_memory)(complaint)
    }

    /// Whether the device is lost to this process after this error.
    pub(super) fn is_lost(self, complaint: &str) -> bool {
        (self.row.errors.is_lost)(complaint)
    }

    /// Why it cannot be had, from what ONNX Runtime said, whose library lies in `folder`, and what to do.
    pub(super) fn explain(self, complaint: &str, folder: &Path) -> Explanation {
        // What cannot be loaded is often told without its name.
        let missing = complaint
            .contains("Failed to load provider")
            .then(|| self.row.needs.iter().find(|name| !lies_in(folder, name)))
            .flatten();
        let named = missing.map(|name| {
            let name = name.trim_end_matches('.');
            format!("{name}: cannot open shared object file ({complaint})")
        });
        (self.row.errors.explain)(named.as_deref().unwrap_or(complaint), self.index)
    }
}

/// Whether `folder` has a file whose name begins like this. One that cannot be read is said to, so that nothing is guessed.
fn lies_in(folder: &Path, beginning: &str) -> bool {
    let Ok(entries) = folder.read_dir() else {
        return true;
    };
    let mut names = entries.flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Option<ExecutionProvider> {
        match text.parse() {
            Ok(Device::Only(provider)) => Some(provider),
            _ => None,
        }
    }

    #[test]
    fn devices_are_named_as_in_the_flag() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3", "openvino"] {
            assert_eq!(
                text.parse::<Device>().map(|device| device.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(device("cuda"), device("cuda:0"));
        assert_eq!(device("CUDA:1"), device("cuda:1"));
        assert_ne!(device("cuda:1"), device("cuda:0"));
        assert_eq!(device("cpu"), Some(ExecutionProvider::CPU));
        assert_eq!(" Auto ".parse(), Ok(Device::Auto));
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:65536",
            "cpu:0",
            "openvino:0",
        ] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_device_asked_for_by_name_has_no_fallback() {
        for row in ROWS {
            let provider = device(row.word);
            assert!(provider.is_some(), "{}", row.word);
            let candidates = provider.map(|it| ExecutionProvider::candidates(it.device()));
            assert_eq!(candidates, provider.map(|it| vec![it]));
            assert_eq!(ExecutionProvider::passed_over(Device::CPU), None);
        }
    }

    #[test]
    fn every_row_is_named_once_and_by_its_own_name() {
        for row in ROWS {
            let provider = ExecutionProvider { row, index: 0 };
            assert_eq!(device(&provider.to_string()), Some(provider));
            assert_eq!(ROWS.iter().filter(|it| it.word == row.word).count(), 1);
            let same = ROWS.iter().filter(|it| it.name == row.name);
            assert_eq!(same.count(), 1, "{}", row.word);
            assert!(row.name.ends_with("ExecutionProvider"));
            assert!(choices().contains(row.word));
        }
    }

    #[test]
    fn errors_are_classified_by_the_row_of_the_provider_that_ran() {
        // The text; and for cpu, cuda, openvino: concerned, out of memory, lost.
        let cases = [
            (
                "CUDA failure 700: an illegal memory access was encountered",
                ["---", "c-l", "---"],
            ),
            ("CUDA failure 2: out of memory", ["---", "cm-", "---"]),
            (
                "Failed to allocate memory for requested buffer of size 8",
                ["-m-", "cm-", "-m-"],
            ),
            ("std::bad_alloc", ["-m-", "---", "-m-"]),
            (
                "[OpenVINO-EP] Exception while Loading Network for graph: x",
                ["---", "---", "c--"],
            ),
            ("indices element out of data bounds", ["---", "---", "---"]),
        ];
        for (text, wanted) in cases {
            for (row, wanted) in ROWS.iter().zip(wanted) {
                let provider = ExecutionProvider { row, index: 0 };
                let mark = |holds: bool, mark: char| if holds { mark } else { '-' };
                let found: String = [
                    mark(provider.is_concerned(text), 'c'),
                    mark(provider.is_out_of_memory(text), 'm'),
                    mark(provider.is_lost(text), 'l'),
                ]
                .iter()
                .collect();
                assert_eq!(found, wanted, "{}: {text}", row.word);
            }
        }
    }

    #[test]
    fn a_library_without_the_provider_is_told_in_its_name_with_a_fix() {
        for row in ROWS
            .iter()
            .filter(|row| row.name != ExecutionProvider::CPU.name())
        {
            let provider = ExecutionProvider { row, index: 0 };
            let told = provider.explain(
                "X execution provider is not enabled in this build. ",
                Path::new("/nowhere"),
            );
            assert_eq!(told.cause, row.errors.not_built_in);
            assert!(told.fix.contains("--onnxruntime"), "{}", told.fix);
        }
    }
}
