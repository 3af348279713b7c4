//! Distributed tracing: the W3C trace context of a request, and its spans over OTLP.
//!
//! Invariant: nothing here makes a request wait. Finished spans go into a bounded queue, from which a thread of its own
//! sends them; what does not fit is dropped.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span,
};

use super::collector::{self, Collector, Endpoint};

pub use opentelemetry::trace::{SpanId, TraceId};

/// How long the end of the process may wait for the last spans to be sent.
const FLUSH: Duration = Duration::from_secs(1);

/// Makes spans; a cheap handle. Without a collector it only reads the ids that requests bring.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<SdkTracer>);

/// Sends the last spans when it is dropped, for at most a second.
#[must_use = "what was traced is sent when the guard is dropped"]
#[derive(Debug)]
pub struct Flush(SdkTracerProvider);

impl Drop for Flush {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Where spans are sent, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracesConfig {
    /// The collector.
    pub endpoint: Endpoint,
    /// The most spans that wait; what does not fit is dropped. Room for all of them is made at the start.
    pub max_queue_size: usize,
    /// The most spans of one export, no more than the queue holds.
    pub max_export_batch_size: usize,
    /// The time between two exports; not zero, at which the thread would never rest.
    pub schedule_delay: Duration,
    /// The longest that one export may take.
    pub export_timeout: Duration,
}

impl TracesConfig {
    /// Sends to `endpoint` as OpenTelemetry's specification does by default, but for the time of an export.
    #[must_use]
    pub fn to(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            max_queue_size: 2048,
            max_export_batch_size: 512,
            schedule_delay: Duration::from_secs(5),
            export_timeout: collector::TIMEOUT,
        }
    }
}

/// Starts sending spans. Sampling and what describes this process follow the OpenTelemetry variables
/// (`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`), which the library reads itself.
///
/// # Errors
/// One line, when the operating system refuses what is needed.
pub fn start(config: &TracesConfig) -> Result<(Tracer, Flush), String> {
    let failed = |error: &dyn fmt::Display| format!("tracing cannot start: {error}");
    let collector = Collector::new(config.export_timeout).map_err(|error| failed(&error))?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(collector)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(config.endpoint.to_string())
        .with_timeout(config.export_timeout)
        .build()
        .map_err(|error| failed(&error))?;
    // Each of these is given, because the library would take any number from the environment, and make room for it.
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(config.max_queue_size)
        .with_max_export_batch_size(config.max_export_batch_size)
        .with_scheduled_delay(config.schedule_delay)
        .build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::new(exporter, batches))
        .with_resource(resource())
        .build();
    let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
    Ok((Tracer(Some(tracer)), Flush(provider)))
}

/// What spans say of this process: what the variables say, and its own name and version where they say nothing.
fn resource() -> Resource {
    let given = Resource::builder().build();
    let name = given.get(&Key::new("service.name"));
    // The library makes a name up where there is none.
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let mut resource = Resource::builder();
    if !is_named {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    if given.get(&Key::new("service.version")).is_none() {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        resource = resource.with_attribute(version);
    }
    resource.build()
}

impl Tracer {
    /// The trace of a request that arrived now, as part of the caller's trace if its headers name one.
    #[must_use]
    pub fn request(
        &self,
        traceparent: Option<&str>,
        tracestate: Option<&str>,
        method: &'static str,
        route: &str,
    ) -> RequestTrace {
        let caller = traceparent.and_then(|text| read_traceparent(text, tracestate));
        let span = self.0.as_ref().map(|tracer| {
            let builder = SpanBuilder::from_name(format!("{method} {route}"))
                .with_kind(SpanKind::Server)
                .with_attributes([
                    KeyValue::new("http.request.method", method),
                    KeyValue::new("http.route", route.to_owned()),
                ]);
            let parent = match &caller {
                Some(caller) => Context::new().with_remote_span_context(caller.clone()),
                None => Context::new(),
            };
            tracer.build_with_context(builder, &parent)
        });
        RequestTrace { caller, span }
    }
}

/// The ids under which a request is found in traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceIds {
    /// The trace that the request is part of.
    pub trace_id: TraceId,
    /// Our span in it; without a collector, the caller's.
    pub span_id: SpanId,
}

/// The part of a prediction that is worth a span of its own.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// When the execution began.
    pub started_at: Instant,
    /// How long the request had waited in the queue by then.
    pub queue: Duration,
    /// How long the execution took, gathering included.
    pub execution: Duration,
    /// Rows of the request.
    pub rows: usize,
    /// Rows of the execution that it rode in.
    pub batch_rows: usize,
    /// The model's name.
    pub model: &'a str,
    /// The model's version.
    pub version: &'a str,
    /// The device that executed it.
    pub device: &'a str,
}

/// The trace of one request. Dropped before it was finished, as when the client leaves, its span ends there.
#[derive(Debug)]
pub struct RequestTrace {
    caller: Option<SpanContext>,
    span: Option<Span>,
}

impl RequestTrace {
    /// The ids for the log; `None` when there is neither a collector nor a caller with a trace.
    #[must_use]
    pub fn ids(&self) -> Option<TraceIds> {
        let context = self
            .span
            .as_ref()
            .map(opentelemetry::trace::Span::span_context);
        let context = context.or(self.caller.as_ref())?;
        Some(TraceIds {
            trace_id: context.trace_id(),
            span_id: context.span_id(),
        })
    }

    /// Ends the request's span, and those of its stages.
    pub fn finish(
        self,
        tracer: &Tracer,
        request_id: &str,
        status: u16,
        error: Option<&'static str>,
        stage: Option<Stage<'_>>,
    ) {
        let (Some(mut span), Some(tracer)) = (self.span, tracer.0.as_ref()) else {
            return;
        };
        if !span.is_recording() {
            return;
        }
        if let Some(stage) = stage {
            stage.send(tracer, &span);
        }
        span.set_attribute(KeyValue::new(
            "http.response.status_code",
            i64::from(status),
        ));
        span.set_attribute(KeyValue::new("request.id", request_id.to_owned()));
        if let Some(code) = error {
            span.set_attribute(KeyValue::new("error.type", code));
            // What a client did wrong is no error of this server.
            if status >= 500 {
                span.set_status(Status::error(code));
            }
        }
        span.end();
    }
}

impl Stage<'_> {
    fn send(&self, tracer: &SdkTracer, parent: &Span) {
        let context = Context::new().with_remote_span_context(parent.span_context().clone());
        let clock = Clock::now();
        let integer = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
        let spans = [
            (
                "queue",
                self.started_at.checked_sub(self.queue),
                Some(self.started_at),
                Vec::new(),
            ),
            (
                "execute",
                Some(self.started_at),
                self.started_at.checked_add(self.execution),
                vec![
                    KeyValue::new("model.name", self.model.to_owned()),
                    KeyValue::new("model.version", self.version.to_owned()),
                    KeyValue::new("model.device", self.device.to_owned()),
                    KeyValue::new("request.rows", integer(self.rows)),
                    KeyValue::new("batch.rows", integer(self.batch_rows)),
                ],
            ),
        ];
        for (name, from, to, attributes) in spans {
            let builder = SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(clock.at(from))
                .with_attributes(attributes);
            tracer
                .build_with_context(builder, &context)
                .end_with_timestamp(clock.at(to));
        }
    }
}

/// One moment on both clocks: spans are stamped with the wall clock, and everything here is measured without it.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "spans are compared with those of other machines"
    )]
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: SystemTime::now(),
        }
    }

    /// The time of an instant in the past.
    fn at(&self, instant: Option<Instant>) -> SystemTime {
        let ago = instant.map_or(Duration::ZERO, |instant| {
            self.instant.saturating_duration_since(instant)
        });
        self.time.checked_sub(ago).unwrap_or(self.time)
    }
}

/// The caller's place in its trace, by the W3C recommendation: `version-trace-span-flags`, all in lower-case
/// hexadecimal. Later versions may append fields. What is ill-formed is as if it were not there.
fn read_traceparent(text: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut fields = text.trim_matches([' ', '\t']).split('-');
    let mut field = |length: usize| {
        let field = fields.next().filter(|field| {
            field.len() == length
                && field
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })?;
        Some(field)
    };
    let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    if version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    let state = tracestate.and_then(|text| TraceState::from_str(text).ok());
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::default().with_sampled(sampled),
        true,
        state.unwrap_or_default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_well_formed_traceparent_is_read() {
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), false),
            (format!(" 00-{TRACE}-{SPAN}-03\t"), true),
            (format!("cc-{TRACE}-{SPAN}-01-later"), true),
        ] {
            let context = read_traceparent(&text, Some("vendor=1")).expect(&text);
            assert_eq!(context.trace_id().to_string(), TRACE);
            assert_eq!(context.span_id().to_string(), SPAN);
            assert_eq!(context.is_sampled(), sampled, "{text}");
            assert_eq!(context.trace_state().get("vendor"), Some("1"));
        }
    }

    #[test]
    fn an_ill_formed_traceparent_is_as_if_it_were_not_there() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00-{TRACE}-{SPAN}-1"),
        ] {
            assert_eq!(read_traceparent(&text, None), None, "{text}");
        }
    }

    #[test]
    fn an_unfit_tracestate_costs_only_itself() {
        let text = format!("00-{TRACE}-{SPAN}-01");
        let context = read_traceparent(&text, Some("no pairs")).expect("the parent is well-formed");
        assert_eq!(context.trace_state().header(), "");
    }

    #[test]
    fn without_a_collector_the_callers_ids_go_into_the_log() {
        let tracer = Tracer::default();
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let ids = tracer
            .request(Some(&parent), None, "POST", "/predict")
            .ids();
        let ids = ids.expect("the caller's ids");
        assert_eq!(ids.trace_id.to_string(), TRACE);
        assert_eq!(ids.span_id.to_string(), SPAN);
        assert_eq!(tracer.request(None, None, "POST", "/predict").ids(), None);
    }
}
