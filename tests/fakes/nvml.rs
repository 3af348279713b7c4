//! A stand-in for the driver's library `libnvidia-ml.so.1`, for machines without a GPU.
//!
//! It has the functions that the server calls, with their C signatures, and answers from the file named by
//! `FAKE_NVML_STATE`, read anew at each call. Its lines are `key value`: `init` and `count` for the whole, and for
//! each GPU `0.handle`, `0.utilization`, `0.memory_used`, `0.memory_total`, `0.temperature`, `0.power`, and `0.xid`, an
//! error of the driver that is reported once. A value is a number, or `error CODE` for the return code of NVML; a GPU's
//! key that is missing is "not supported".

use std::ffi::{c_char, c_uint, c_ulonglong, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

const SUCCESS: c_uint = 0;
const UNINITIALIZED: c_uint = 1;
const NOT_SUPPORTED: c_uint = 3;
const TIMEOUT: c_uint = 10;

fn value_of(key: &str) -> Result<u64, c_uint> {
    let path = std::env::var_os("FAKE_NVML_STATE").ok_or(UNINITIALIZED)?;
    let text = std::fs::read_to_string(path).map_err(|_| UNINITIALIZED)?;
    let line = text.lines().find_map(|line| {
        line.strip_prefix(key)
            .and_then(|rest| rest.strip_prefix(' '))
    });
    let value = line.ok_or(NOT_SUPPORTED)?;
    match value.strip_prefix("error ") {
        Some(code) => Err(code.parse().unwrap()),
        None => Ok(value.parse().unwrap()),
    }
}

fn status(result: Result<(), c_uint>) -> c_uint {
    result.err().unwrap_or(SUCCESS)
}

/// A handle is the GPU's index plus one, so that none is null.
fn of_device(device: *mut c_void, field: &str) -> Result<u64, c_uint> {
    let index = device as usize - 1;
    value_of(&format!("{index}.handle"))?;
    value_of(&format!("{index}.{field}"))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_uint {
    status(value_of("init").map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_uint {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(text: *mut c_char, length: c_uint) -> c_uint {
    let version = b"580.95.05\0";
    assert!(length as usize >= version.len());
    unsafe { std::ptr::copy_nonoverlapping(version.as_ptr().cast(), text, version.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_uint {
    status(value_of("count").map(|value| unsafe { *count = value as c_uint }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut *mut c_void,
) -> c_uint {
    let handle = value_of(&format!("{index}.handle"));
    status(handle.map(|_| unsafe { *device = (index as usize + 1) as *mut c_void }))
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: *mut c_void,
    utilization: *mut Utilization,
) -> c_uint {
    let gpu = of_device(device, "utilization");
    status(gpu.map(|gpu| unsafe {
        *utilization = Utilization {
            gpu: gpu as c_uint,
            memory: 0,
        }
    }))
}

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: *mut c_void,
    memory: *mut Memory,
) -> c_uint {
    let read = || {
        let (total, used) = (
            of_device(device, "memory_total")?,
            of_device(device, "memory_used")?,
        );
        let memory = unsafe { &mut *memory };
        (memory.total, memory.used, memory.free, memory.reserved) = (total, used, total - used, 0);
        Ok(())
    };
    status(read())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: *mut c_void,
    _sensor: c_uint,
    celsius: *mut c_uint,
) -> c_uint {
    let value = of_device(device, "temperature");
    status(value.map(|value| unsafe { *celsius = value as c_uint }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(
    device: *mut c_void,
    milliwatts: *mut c_uint,
) -> c_uint {
    let value = of_device(device, "power");
    status(value.map(|value| unsafe { *milliwatts = value as c_uint }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: *mut c_void,
    text: *mut c_char,
    length: c_uint,
) -> c_uint {
    let uuid = format!("GPU-{}\0", device as usize - 1);
    assert!(length as usize >= uuid.len());
    unsafe { std::ptr::copy_nonoverlapping(uuid.as_ptr().cast(), text, uuid.len()) };
    SUCCESS
}

/// The set of one GPU's events is its handle.
static WATCHED: AtomicU64 = AtomicU64::new(0);
static REPORTED: AtomicU64 = AtomicU64::new(0);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut *mut c_void) -> c_uint {
    unsafe { *set = std::ptr::without_provenance_mut(1) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(_set: *mut c_void) -> c_uint {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: *mut c_void,
    _types: c_ulonglong,
    _set: *mut c_void,
) -> c_uint {
    WATCHED.store(device as u64, Ordering::Relaxed);
    SUCCESS
}

#[repr(C)]
pub struct EventData {
    device: *mut c_void,
    event_type: c_ulonglong,
    event_data: c_ulonglong,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    _set: *mut c_void,
    data: *mut EventData,
    timeout_ms: c_uint,
) -> c_uint {
    const XID_CRITICAL_ERROR: c_ulonglong = 8;
    let handle = WATCHED.load(Ordering::Relaxed);
    let xid = value_of(&format!("{}.xid", handle - 1)).unwrap_or(0);
    if xid == 0 || REPORTED.swap(xid, Ordering::Relaxed) == xid {
        std::thread::sleep(std::time::Duration::from_millis(timeout_ms.into()));
        return TIMEOUT;
    }
    unsafe {
        *data = EventData {
            device: handle as *mut c_void,
            event_type: XID_CRITICAL_ERROR,
            event_data: xid,
            gpu_instance_id: 0,
            compute_instance_id: 0,
        }
    };
    SUCCESS
}
