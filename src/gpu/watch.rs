//! Whether the GPU that executes the models is lost, as the driver sees it.
//!
//! CUDA says so only to whoever asks it for something, and a request should not be the first to learn it. Invariant:
//! only the serving GPU counts, and only what a restart of the process, or of its node, can cure.

use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};

/// The driver's errors ("XID") after which a GPU serves nobody until it is reset: a halted controller, a card that has
/// left the bus, memory errors that could not be contained, a system processor that does not answer. The rest are the
/// faults of single programs, or contained, which CUDA tells to those concerned.
const FATAL: [u64; 7] = [62, 79, 95, 119, 120, 140, 143];

/// How the user chooses and orders GPUs for CUDA; NVML heeds neither.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Visible {
    /// `CUDA_VISIBLE_DEVICES`.
    pub(super) devices: Option<String>,
    /// `CUDA_DEVICE_ORDER`.
    pub(super) order: Option<String>,
}

impl Visible {
    pub(super) fn from_environment() -> Self {
        Self {
            devices: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
            order: std::env::var("CUDA_DEVICE_ORDER").ok(),
        }
    }

    /// NVML's index of the GPU that CUDA calls `cuda`; `uuids` are those of NVML's GPUs, in its order. Nothing if it
    /// cannot be known: by default CUDA counts the fastest GPU first, and NVML by the place on the bus.
    pub(super) fn index(&self, cuda: u16, uuids: &[String]) -> Option<u32> {
        let chosen = match &self.devices {
            Some(devices) => devices
                .split(',')
                .map(str::trim)
                .nth(usize::from(cuda))?
                .to_owned(),
            None => cuda.to_string(),
        };
        if let Ok(number) = chosen.parse::<u32>() {
            let by_bus = self.order.as_deref() == Some("PCI_BUS_ID");
            return match uuids.len() {
                1 => Some(0),
                _ if by_bus => Some(number),
                _ => None,
            };
        }
        let position = uuids.iter().position(|uuid| uuid.starts_with(&chosen));
        u32::try_from(position?).ok()
    }
}

/// What is watched: one GPU, and the errors that the driver reports of it.
pub(super) struct Watch<'nvml> {
    pub(super) index: u32,
    errors: Option<EventSet<'nvml>>,
}

impl<'nvml> Watch<'nvml> {
    /// Watches the GPU that CUDA calls `cuda`, if it is known which of NVML's `count` that is.
    pub(super) fn start(nvml: &'nvml Nvml, count: u32, cuda: u16) -> Option<Self> {
        let uuid = |index| nvml.device_by_index(index).and_then(|device| device.uuid());
        let uuids: Vec<String> = (0..count)
            .map(|index| uuid(index).unwrap_or_default())
            .collect();
        let index = Visible::from_environment().index(cuda, &uuids);
        let Some(index) = index else {
            tracing::info!(
                cuda,
                "it is not known which of the GPUs serves, so that only CUDA will tell if it is lost; CUDA_DEVICE_ORDER=PCI_BUS_ID helps"
            );
            return None;
        };
        // Not every GPU reports errors, nor every container may ask.
        let errors = nvml.create_event_set().ok().and_then(|set| {
            let device = nvml.device_by_index(index).ok()?;
            device
                .register_events(EventTypes::CRITICAL_XID_ERROR, set)
                .ok()
        });
        Some(Self { index, errors })
    }

    /// Why the GPU is lost, if the last reading's `error` says so.
    pub(super) fn loss_by(error: Option<&NvmlError>) -> Option<String> {
        match error {
            Some(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => {
                Some(format!("NVML: {error}"))
            }
            _ => None,
        }
    }

    /// Waits for `time`, or until the driver reports an error; says why the GPU is lost if that means it. Of several
    /// errors the driver gives only the last, so that each must be taken when it comes. `None` at once if this GPU
    /// reports none.
    pub(super) fn wait(&self, time: Duration) -> Option<String> {
        let timeout = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let event = match self.errors.as_ref()?.wait(timeout) {
            Ok(event) => event,
            Err(error) => return Self::loss_by(Some(&error)),
        };
        let Some(XidError::Value(xid)) = event.event_data else {
            return None;
        };
        if FATAL.contains(&xid) {
            return Some(format!("the driver reports XID {xid}"));
        }
        tracing::warn!(
            gpu_id = self.index,
            xid,
            "the driver reports an error of a program on this GPU"
        );
        None
    }

    /// Whether this GPU reports errors.
    pub(super) fn reports(&self) -> bool {
        self.errors.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serving_gpu_is_known_by_its_number_only_where_both_count_alike() {
        let uuids = ["GPU-aa", "GPU-bb", "GPU-cc"].map(str::to_owned);
        let index = |devices: Option<&str>, order: Option<&str>, cuda| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            Visible {
                devices: text(devices),
                order: text(order),
            }
            .index(cuda, &uuids)
        };
        assert_eq!(index(None, None, 1), None);
        assert_eq!(index(None, Some("PCI_BUS_ID"), 1), Some(1));
        assert_eq!(index(Some("2,0"), Some("PCI_BUS_ID"), 1), Some(0));
        assert_eq!(index(Some("2"), Some("PCI_BUS_ID"), 1), None);
        assert_eq!(index(Some("GPU-cc, GPU-a"), None, 1), Some(0));
        assert_eq!(index(Some("GPU-dd"), None, 0), None);
        assert_eq!(Visible::default().index(0, &uuids[..1]), Some(0));
    }
}
