//! The trial on models that compute what a test says, and take as long as it says, by a clock that nothing else moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::comparison::{Agreement, Elements, other_kernels, same_kernels};
use super::*;
use crate::model::{Batchability, Dim, ModelMetadata, TensorSpec};
use crate::runtime::{BatchInput, BatchOutput, Interrupt};
use crate::runtime::{Division, ModelOutput};
use crate::tensor::{DataType, Shape, TensorData, TensorView};

/// What a model makes of all values and the number of rows; nothing if it refuses them.
type Compute = fn(&[f32], usize) -> BatchOutput;

struct Fake {
    metadata: Arc<ModelMetadata>,
    compute: Compute,
    /// Microseconds that a run takes, and each of its rows besides.
    costs: (u64, u64),
    now: Arc<AtomicU64>,
    /// The rows of each execution.
    executed: Arc<Mutex<Vec<usize>>>,
}

impl Model for Fake {
    fn metadata(&self) -> &Arc<ModelMetadata> {
        &self.metadata
    }

    fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
        let TensorView::Fp32(values) = input[0].elements else {
            return Err(RuntimeError::Broken("expected FP32".to_owned()));
        };
        let rows = input[0].shape[0];
        let took = self.costs.0 + self.costs.1 * rows as u64;
        self.now.fetch_add(took, Ordering::Relaxed);
        self.executed.lock().push(rows);
        let outputs = (self.compute)(values, rows);
        if outputs.is_empty() {
            // As ONNX Runtime says it, with a name that the model's file does not have, and one that it has.
            let text = "Non-zero status code returned while running Gather node. Name:'fused/lookup' Status Message: indices element out of data bounds at /build/gather.cc:12";
            return Err(RuntimeError::Refused(text.to_owned()));
        }
        Ok(outputs)
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::new(Nobody)
    }
}

struct Nobody;

impl Interrupt for Nobody {
    fn interrupt(&self) {}
}

fn spec(name: &str, dims: &[&str]) -> TensorSpec {
    let dim = |dim: &&str| match dim.parse() {
        Ok(size) => Dim::Fixed(size),
        Err(_) => Dim::Dynamic(Some((*dim).to_owned())),
    };
    TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        dims: Some(dims.iter().map(dim).collect()),
        labels: Vec::new(),
    }
}

fn metadata(input: &[&str], outputs: &[&[&str]]) -> ModelMetadata {
    let names = ["y", "z"].iter();
    ModelMetadata {
        name: "fake".to_owned(),
        version: "1".to_owned(),
        description: String::new(),
        inputs: vec![spec("x", input)],
        outputs: names
            .zip(outputs)
            .map(|(name, dims)| spec(name, dims))
            .collect(),
        batchability: Batchability::Rows,
        sha256: String::new(),
        file_size: 0,
        opsets: BTreeMap::new(),
        producer: String::new(),
        properties: BTreeMap::new(),
    }
}

fn tensor(shape: &[usize], values: Vec<f32>) -> ModelOutput {
    ModelOutput::new(Shape::from_slice(shape), Arc::new(TensorData::from(values))).unwrap()
}

/// A trial of a model; what can be varied of it.
struct Case {
    metadata: ModelMetadata,
    flows: Vec<Flow>,
    operators: Operators,
    compute: Compute,
    costs: (u64, u64),
    limits: Limits,
}

const SIZED: Flow = Flow {
    sized: true,
    constant: false,
};

impl Case {
    /// A model with rows of four numbers on either side.
    fn new(compute: Compute) -> Self {
        Self {
            metadata: metadata(&["N", "4"], &[&["N", "4"]]),
            flows: vec![SIZED, SIZED],
            operators: Operators::default(),
            compute,
            costs: (0, 0),
            limits: Limits {
                max_rows: 8,
                tf32: false,
                largest: LARGEST_INPUT,
            },
        }
    }

    fn verdict(self) -> (Verdict, Vec<usize>, Duration) {
        let now = Arc::new(AtomicU64::new(0));
        let executed = Arc::new(Mutex::new(Vec::new()));
        let mut model = Fake {
            metadata: Arc::new(self.metadata),
            compute: self.compute,
            costs: self.costs,
            now: Arc::clone(&now),
            executed: Arc::clone(&executed),
        };
        let clock = || Duration::from_micros(now.load(Ordering::Relaxed));
        let metadata = Arc::clone(&model.metadata);
        let trial = Trial::new(
            &mut model,
            &metadata,
            (&self.flows, &self.operators),
            self.limits,
            &clock,
        );
        let verdict = trial.run(false).unwrap();
        let executed = executed.lock().clone();
        (verdict, executed, clock())
    }

    fn dependence(self) -> Option<String> {
        let dependence = self.verdict().0.dependence;
        dependence.map(|dependence| format!("{}: {dependence}", dependence.kind()))
    }
}

/// What is said of a model with rows of four numbers on either side.
fn dependence(compute: Compute) -> Option<String> {
    Case::new(compute).dependence()
}

/// One output of as many columns as the input has.
fn each(values: &[f32], rows: usize, of: impl Fn(usize, f32) -> f32) -> BatchOutput {
    let columns = values.len() / rows;
    let values = values.iter().enumerate();
    let made: Vec<f32> = values
        .map(|(place, value)| of(place / columns, *value))
        .collect();
    vec![tensor(&[rows, columns], made)]
}

#[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
fn float(count: usize) -> f32 {
    count as f32
}

#[test]
fn rounding_is_no_doubt_and_everything_beyond_it_is() {
    assert_eq!(
        dependence(|values, rows| each(values, rows, |_, value| value)),
        None
    );
    // As when the order of additions depends on the number of rows.
    let rounded: Compute =
        |values, rows| each(values, rows, |_, value| value * (1.0 + 1e-6 * float(rows)));
    assert_eq!(dependence(rounded), None);
    let scaled: Compute =
        |values, rows| each(values, rows, |_, value| value * (1.0 + 0.01 * float(rows)));
    let scaled = dependence(scaled).unwrap();
    assert!(
        scaled
            .starts_with("neighbours: output 'y' of a row depends on how many rows are executed: "),
        "{scaled}"
    );
    assert!(scaled.contains("rows of fractions from 0 to 1"), "{scaled}");
}

#[test]
fn an_influence_of_the_last_row_or_of_the_position_is_found() {
    let last: Compute = |values, rows| {
        let last = values[values.len() - 1];
        each(values, rows, |_, value| value + last)
    };
    let last = dependence(last).unwrap();
    assert!(
        last.starts_with("neighbours: output 'y' of a row depends on the rows beside it: "),
        "{last}"
    );
    let position: Compute = |values, rows| each(values, rows, |row, value| value + float(row));
    assert!(dependence(position).unwrap().starts_with("neighbours"));
    // Five rows before: nothing that two or three rows can show.
    let before: Compute = |values, rows| {
        let columns = values.len() / rows;
        each(values, rows, |row, value| {
            let before = row.checked_sub(5).map_or(0.0, |row| values[row * columns]);
            value + before
        })
    };
    assert!(dependence(before).unwrap().starts_with("neighbours"));
}

#[test]
fn other_shapes_are_told_as_such_and_not_as_random_answers() {
    assert_eq!(
        dependence(|values, _| vec![tensor(&[1, 4], values[..4].to_vec())]).unwrap(),
        "neighbours: output 'y' has another shape when 2 rows are executed together: [1, 4]"
    );
    assert_eq!(
        dependence(|values, rows| vec![tensor(&[2 * rows, 4], [values, values].concat())]).unwrap(),
        "neighbours: output 'y' has the shape [2, 4] when 1 row is executed, so that its first dimension is not the batch"
    );
    let mut declared = Case::new(|values, _| vec![tensor(&[1], vec![values.iter().sum()])]);
    declared.metadata = metadata(&["N", "4"], &[&["1"]]);
    assert_eq!(
        declared.dependence().unwrap(),
        "signature: output y FP32[1] has no dynamic first dimension"
    );
}

#[test]
fn the_operator_that_refuses_is_told_by_the_names_of_the_model_s_file_alone() {
    for (nodes, who) in [
        (&[][..], "the model"),
        (
            &[("fused/lookup", "Gather")],
            "the model's operator Gather (node 'fused/lookup')",
        ),
        (&[("lookup", "Gather")], "the model's operator Gather"),
        (&[("lookup", "MatMul")], "the model"),
    ] {
        let mut case = Case::new(|_, _| Vec::new());
        case.operators = Operators::of_nodes(nodes);
        let expected = format!(
            "untested: it could not be tested whether rows depend on each other: {who} refuses dummy values"
        );
        assert_eq!(case.dependence(), Some(expected));
    }
}

#[test]
fn a_model_that_refuses_two_rows_has_no_batch() {
    let single: Compute = |values, rows| {
        if rows > 1 {
            Vec::new()
        } else {
            each(values, rows, |_, value| value)
        }
    };
    assert_eq!(
        dependence(single).unwrap(),
        "signature: the model takes one row, and refuses two: the model refuses dummy values"
    );
}

#[test]
fn a_length_that_values_decide_is_found_where_made_up_rows_differ_in_it() {
    // As long as the row with most numbers that are not zero.
    let padded: Compute = |values, rows| {
        let counts = values.chunks(values.len() / rows);
        let counts = counts.map(|row| row.iter().filter(|value| **value != 0.0).count());
        let longest = counts.max().unwrap_or_default();
        vec![tensor(&[rows, longest], vec![1.0; rows * longest])]
    };
    let mut case = Case::new(padded);
    case.metadata = metadata(&["N", "64"], &[&["N", "K"]]);
    let found = case.dependence().unwrap();
    assert!(
        found.starts_with("neighbours: the shape of output 'y' depends on values: [1, "),
        "{found}"
    );
}

#[test]
fn a_length_that_nothing_explains_is_doubted_although_made_up_rows_do_not_show_it() {
    let loose = Flow {
        sized: false,
        constant: false,
    };
    // What a row says beyond a million; no dummy row does.
    let rarely: Compute = |values, rows| {
        let most = values.iter().filter(|value| **value > 1e6).count();
        vec![tensor(&[rows, 1 + most], vec![1.0; rows * (1 + most)])]
    };
    let case = |dims: &[&str], flow| {
        let mut case = Case::new(rarely);
        case.metadata = metadata(&["N", "4"], &[dims]);
        case.flows = vec![flow];
        case.dependence()
    };
    let found = case(&["N", "K"], loose).unwrap();
    assert!(
        found.starts_with("neighbours: the size of dimension 1 of output 'y' may depend on values"),
        "{found}"
    );
    assert!(
        case(&["N", "3"], loose).is_some(),
        "it declares what it does not do"
    );
    // It is declared to be one, or the graph derives it from shapes.
    assert_eq!(case(&["N", "1"], loose), None);
    assert_eq!(case(&["N", "K"], SIZED), None);
    // An input has it.
    let mut open = Case::new(|values, rows| each(values, rows, |_, value| value));
    open.metadata = metadata(&["N", "L"], &[&["N", "L"]]);
    open.flows = vec![loose];
    assert_eq!(open.dependence(), None);
}

#[test]
fn an_output_that_no_value_reaches_is_shared_and_another_one_without_rows_is_a_doubt() {
    let beside: Compute = |values, rows| {
        let mut outputs = each(values, rows, |_, value| value);
        outputs.push(tensor(&[3], vec![7.0, 8.0, 9.0]));
        outputs
    };
    let constant = Flow {
        sized: true,
        constant: true,
    };
    let case = |flow, compute| {
        let mut case = Case::new(compute);
        case.metadata = metadata(&["N", "4"], &[&["N", "4"], &["3"]]);
        case.flows = vec![SIZED, flow];
        case
    };
    let (verdict, ..) = case(constant, beside).verdict();
    assert_eq!(verdict.dependence, None);
    let divisions: Vec<Division> = verdict
        .plan
        .outputs
        .iter()
        .map(|plan| plan.division)
        .collect();
    assert_eq!(divisions, [Division::Rows, Division::Shared]);
    // Values might reach it that were not made up.
    assert!(
        case(SIZED, beside)
            .dependence()
            .unwrap()
            .starts_with("signature")
    );
    let counted: Compute = |values, rows| {
        let mut outputs = each(values, rows, |_, value| value);
        outputs.push(tensor(&[3], vec![float(rows); 3]));
        outputs
    };
    assert!(
        case(constant, counted)
            .dependence()
            .unwrap()
            .starts_with("signature")
    );
}

#[test]
fn rows_of_many_elements_hide_nothing_by_being_alike() {
    fn largest(values: &[f32]) -> f32 {
        values
            .iter()
            .fold(0.0, |largest, value| value.abs().max(largest))
    }
    let computations: [Compute; 3] = [
        |values, rows| {
            let mean = values.iter().sum::<f32>() / float(values.len());
            each(values, rows, |_, value| value - mean)
        },
        |values, rows| {
            let largest = largest(values);
            each(values, rows, |_, value| value / largest)
        },
        // As a dynamic quantisation does, back and forth.
        |values, rows| {
            let step = largest(values) / 127.0;
            each(values, rows, |_, value| (value / step).round() * step)
        },
    ];
    for compute in computations {
        let mut case = Case::new(compute);
        case.metadata = metadata(&["N", "12288"], &[&["N", "12288"]]);
        assert!(case.dependence().unwrap().starts_with("neighbours"));
    }
}

/// Whether many of the numbers are zero, as no row that looks like data has them.
fn is_sparse(values: &[f32]) -> bool {
    values.iter().filter(|value| **value == 0.0).count() > values.len() / 4
}

#[test]
fn what_only_unlikely_rows_show_is_rounding_if_it_is_small_and_neighbours_do_not_matter() {
    fn wide(compute: Compute) -> Case {
        let mut case = Case::new(compute);
        case.metadata = metadata(&["N", "64"], &[&["N", "64"]]);
        case
    }
    // Half of the elements of sparse rows are zero, whatever stands beside them.
    fn amplified(values: &[f32], rows: usize, by: f32) -> BatchOutput {
        let columns = values.len() / rows;
        each(values, rows, |row, value| {
            let own = &values[row * columns..(row + 1) * columns];
            let by = if is_sparse(own) { by } else { 0.0 };
            value * (1.0 + by * float(rows.min(2)))
        })
    }
    let (verdict, ..) = wide(|values, rows| amplified(values, rows, 0.01)).verdict();
    assert_eq!(verdict.dependence, None);
    assert!(
        verdict
            .tried
            .contains("of fractions of which half are zero, apart by")
            && verdict.tried.contains("taken for rounding"),
        "{}",
        verdict.tried
    );
    let far = wide(|values, rows| amplified(values, rows, 0.2))
        .dependence()
        .unwrap();
    assert!(far.contains("depends on how many rows"), "{far}");
    // Whatever kind of rows it is that notices its neighbours.
    let sees: Compute = |values, rows| {
        let columns = values.len() / rows;
        let any_sparse = values.chunks(columns).any(is_sparse);
        each(
            values,
            rows,
            |_, value| if any_sparse { value * 1.001 } else { value },
        )
    };
    assert!(wide(sees).dependence().unwrap().starts_with("neighbours"));
}

#[test]
fn a_few_whole_numbers_may_flip_with_the_number_of_rows_but_not_with_the_neighbours() {
    let output = |values: Vec<i64>, rows: usize| {
        let shape = Shape::from_slice(&[rows, values.len() / rows]);
        ModelOutput::new(shape, Arc::new(TensorData::from(values))).unwrap()
    };
    let alone = output(vec![7; 1000], 1);
    let agreement = |together: &ModelOutput| -> Agreement {
        let row = |place| Elements::row(together, place, 2).unwrap();
        let one = Elements::row(&alone, 0, 1).unwrap();
        other_kernels(&[one, one], &[row(0), row(1)], false)
    };
    let mut two = vec![7; 2000];
    two[5] = 8;
    let together = output(two.clone(), 2);
    assert_eq!(agreement(&together).beyond, None);
    two[..100].fill(8);
    assert!(agreement(&output(two, 2)).beyond.is_some());
    let before = output(vec![7; 2000], 2);
    let same = |place| {
        let row = |output| Elements::row(output, place, 2).unwrap();
        same_kernels(&row(&before), &row(&together))
    };
    assert!(same(0).is_some());
    assert_eq!(same(1), None);
}

#[test]
fn what_has_no_numbers_shows_nothing() {
    let nothing = dependence(|values, rows| each(values, rows, |_, _| f32::NAN));
    assert!(nothing.unwrap().starts_with("untested"));
}

#[test]
fn what_cannot_be_tried_is_doubted() {
    assert_eq!(
        dependence(|_, _| Vec::new()).unwrap(),
        "untested: it could not be tested whether rows depend on each other: the model refuses dummy values"
    );
    let limited = |largest| {
        let mut case = Case::new(|values, rows| each(values, rows, |_, value| value));
        case.limits.largest = largest;
        case
    };
    // One row of four numbers fits, and two do not.
    assert!(
        limited(16)
            .dependence()
            .unwrap()
            .ends_with("its rows are too large")
    );
    // Two fit, and three do not: it is shown for two.
    let (verdict, ..) = limited(32).verdict();
    assert_eq!((verdict.dependence, verdict.rows), (None, 2));
}

#[test]
fn a_slow_model_is_tried_with_few_rows_and_merges_no_more_and_a_fast_one_with_all() {
    let independent: Compute = |values, rows| each(values, rows, |_, value| value);
    let tried = |costs, max_rows| {
        let mut case = Case::new(independent);
        case.costs = costs;
        case.limits.max_rows = max_rows;
        let (verdict, executed, time) = case.verdict();
        assert_eq!(verdict.dependence, None);
        (verdict, executed, time)
    };
    // 150 ms a row: what a verdict needs, whatever the largest batch may be.
    let (slow, executed, time) = tried((0, 150_000), 32);
    assert!(executed.iter().sum::<usize>() <= 19, "{executed:?}");
    assert!(time <= Duration::from_secs(3), "{time:?}");
    assert_eq!(slow.rows, 2);
    assert!(slow.tried.contains("none larger"), "{}", slow.tried);
    let (_, with_more, _) = tried((0, 150_000), 16384);
    assert_eq!(executed, with_more);
    // However many rows, a run takes as long: all are tried.
    for run in [100_000, 200_000, 400_000] {
        let (flat, executed, _) = tried((run, 0), 32);
        assert_eq!(flat.rows, 32, "{executed:?}");
    }
    let (fast, executed, _) = tried((10, 5), 16384);
    assert_eq!(fast.rows, 16384);
    let sizes: BTreeSet<usize> = executed.into_iter().collect();
    let expected = [1, 2, 3, 8, 32, 128, 512, 2048, 8192, 16384];
    assert_eq!(sizes, BTreeSet::from(expected));
    // What would take a minute, or some seconds more than it may, is not tried.
    for (run, executions) in [(5_000_000, 1), (1_000_000, 2)] {
        let mut endless = Case::new(independent);
        endless.costs = (run, 0);
        let (verdict, executed, _) = endless.verdict();
        assert_eq!(executed, vec![1; executions]);
        assert_eq!(verdict.dependence.unwrap().kind(), "untested");
    }
}
