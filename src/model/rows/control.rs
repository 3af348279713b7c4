//! Branches and loops: graphs inside a node.

use super::Walk;
use super::call::{Call, axis};
use super::size::{Size, Symbols};
use super::value::{Own, Place, Reach, Value, alternative};
use crate::model::proto::GraphProto;

/// Graphs inside each other that are followed.
const DEEPEST: usize = 8;

/// How often a loop is followed, until what its states reach stays the same.
const ROUNDS: usize = 16;

/// The version of the standard since which a scan knows of no batch.
const SCAN_WITHOUT_BATCH: i64 = 9;

impl<'a> Walk<'a> {
    pub(super) fn branches(&mut self, call: &Call<'a>) -> Option<Vec<Value>> {
        // It decides for all rows.
        if call.input(0)?.place().is_some() {
            return Some(call.all_mixed());
        }
        let condition = call.input(0)?.numbers();
        let then = call.graph("then_branch")?;
        let otherwise = call.graph("else_branch")?;
        // Which of them it is, is sometimes known.
        match condition.as_deref() {
            Some([0]) => return self.inner(otherwise, Vec::new()),
            Some([_]) => return self.inner(then, Vec::new()),
            _ => {}
        }
        if call.input(0)?.counts {
            return Some(call.all_mixed());
        }
        let is_known = call.input(0)?.is_nothing();
        let one = self.inner(then, Vec::new())?;
        let other = self.inner(otherwise, Vec::new())?;
        let mut results = Vec::new();
        for (one, other) in one.iter().zip(&other) {
            let value = either(one, other, &mut Vec::new(), &mut self.symbols);
            results.push(doubted(value, !is_known));
        }
        Some(results)
    }

    pub(super) fn repetition(&mut self, call: &Call<'a>) -> Option<Vec<Value>> {
        let decides = |index: usize| {
            call.input(index)
                .is_some_and(|value| value.place().is_some())
        };
        if decides(0) || decides(1) {
            return Some(call.all_mixed());
        }
        let unknown = |index: usize| call.input(index).is_some_and(|value| !value.is_nothing());
        let is_known = !unknown(0) && !unknown(1);
        let body = call.graph("body")?;
        let count = call.inputs.len().checked_sub(2)?;
        let states: Option<Vec<Value>> = (2..call.inputs.len())
            .map(|index| call.input(index).cloned())
            .collect();
        let scalar = Value::new(Reach::Nothing, Vec::new());
        let (states, outputs) = self.settled(
            body,
            states?,
            |states| {
                let mut inputs = vec![scalar.clone(), scalar.clone()];
                inputs.extend_from_slice(states);
                inputs
            },
            1,
        )?;
        // Whether it goes on is decided for all rows.
        match &outputs.first()?.reach {
            Reach::Rows(_) => return Some(call.all_mixed()),
            Reach::Mixed(by) => {
                return Some(vec![
                    Value::shapeless(Reach::Mixed(by.clone()));
                    call.outputs()
                ]);
            }
            Reach::Nothing | Reach::Unknown => {}
        }
        let is_known = is_known && outputs.first()?.is_nothing();
        let mut results = states;
        for value in outputs.iter().skip(1 + count) {
            results.push(stacked(value, 0, &mut self.symbols));
        }
        Some(
            results
                .into_iter()
                .map(|value| doubted(value, !is_known))
                .collect(),
        )
    }

    pub(super) fn scan(&mut self, call: &Call<'a>) -> Option<Vec<Value>> {
        if call.opset < SCAN_WITHOUT_BATCH {
            return None;
        }
        let body = call.graph("body")?;
        let scanned = usize::try_from(call.int("num_scan_inputs", 1)).ok()?;
        let count = call.inputs.len().checked_sub(scanned)?;
        let at = |name: &str, index: usize| {
            let axes = call.ints(name).unwrap_or_default();
            axes.get(index).copied().unwrap_or(0)
        };
        let mut slices = Vec::new();
        for index in 0..scanned {
            let value = call.input(count + index)?;
            let mut dims = value.dims.clone()?;
            let along = axis(at("scan_input_axes", index), dims.len())?;
            let reach = match value.place() {
                // Row by row: what is carried on meets the next row.
                Some(place) if place.axis == along && count > 0 => {
                    return Some(call.all_mixed());
                }
                Some(place) if place.axis == along => return None,
                Some(place) if place.axis > along => Reach::Rows(place.moved(place.axis - 1)),
                _ => value.reach.clone(),
            };
            dims.remove(along);
            slices.push(Value::new(reach, dims));
        }
        let states: Option<Vec<Value>> =
            (0..count).map(|index| call.input(index).cloned()).collect();
        let (states, outputs) = self.settled(
            body,
            states?,
            |states| {
                let mut inputs = states.to_vec();
                inputs.extend_from_slice(&slices);
                inputs
            },
            0,
        )?;
        let mut results = states;
        for (index, value) in outputs.iter().skip(count).enumerate() {
            let rank = value.rank().map_or(1, |rank| rank + 1);
            let along = axis(at("scan_output_axes", index), rank)?;
            results.push(stacked(value, along, &mut self.symbols));
        }
        Some(results)
    }

    /// The states of a loop, once they reach no more from round to round, and the outputs of its last round, of which the
    /// states begin at `from`.
    fn settled(
        &mut self,
        body: &'a GraphProto,
        mut states: Vec<Value>,
        inputs: impl Fn(&[Value]) -> Vec<Value>,
        from: usize,
    ) -> Option<(Vec<Value>, Vec<Value>)> {
        for state in &mut states {
            *state = state.clone().with_items(None).standing_for(Own::Other);
        }
        // Sizes that are other ones from round to round.
        let mut varying = Vec::new();
        let mut mixed = None;
        for _ in 0..ROUNDS {
            let outputs = self.inner(body, inputs(&states))?;
            let mut next = Vec::new();
            for (index, state) in states.iter().enumerate() {
                let output = outputs.get(from + index)?;
                next.push(either(state, output, &mut varying, &mut self.symbols));
            }
            let met = outputs
                .iter()
                .find(|value| matches!(value.reach, Reach::Mixed(_)));
            mixed = mixed.or(met.map(|value| value.reach.clone()));
            if next == states {
                return Some((states, outputs));
            }
            states = next;
        }
        // Where it did not come to rest, what met once may be anywhere.
        let value = Value::shapeless(mixed?);
        let outputs = vec![value.clone(); body.output.len()];
        Some((vec![value; states.len()], outputs))
    }

    /// What the outputs of a graph inside are.
    fn inner(&mut self, graph: &'a GraphProto, inputs: Vec<Value>) -> Option<Vec<Value>> {
        if self.scopes.len() > DEEPEST {
            return None;
        }
        self.scopes.push(std::collections::HashMap::new());
        let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
        let open = graph.input.iter().filter(|input| !is_weight(&input.name));
        for (input, value) in open.zip(inputs) {
            self.set(&input.name, value);
        }
        self.run(graph);
        let outputs = graph.output.iter().map(|output| self.value(&output.name));
        let outputs = outputs.collect();
        self.scopes.pop();
        Some(outputs)
    }
}

/// One of two values; sizes in which they differ are new ones, which are added to those that are `varying` already.
fn either(one: &Value, other: &Value, varying: &mut Vec<Size>, symbols: &mut Symbols) -> Value {
    let reach = alternative(one.reach.clone(), other.reach.clone());
    let (Some(a), Some(b)) = (&one.dims, &other.dims) else {
        return Value::shapeless(reach);
    };
    if a.len() != b.len() {
        return Value::shapeless(reach);
    }
    let mut dims = Vec::new();
    for (one, other) in a.iter().zip(b) {
        dims.push(if one == other || varying.contains(one) {
            one.clone()
        } else {
            varying.push(symbols.fresh());
            varying.last().cloned().unwrap_or_else(|| symbols.fresh())
        });
    }
    Value::new(reach, dims)
}

/// The values of all rounds, one beside the other along `axis`.
fn stacked(value: &Value, axis: usize, symbols: &mut Symbols) -> Value {
    let Some(mut dims) = value.dims.clone() else {
        return Value::shapeless(value.reach.clone());
    };
    dims.insert(axis.min(dims.len()), symbols.fresh());
    let reach = match value.place() {
        Some(place) if place.axis >= axis => Reach::Rows(Place {
            axis: place.axis + 1,
            ..place.clone()
        }),
        _ => value.reach.clone(),
    };
    Value::new(reach, dims)
}

/// `value`, of which it is not known whether it follows from values, if it `is_unknown`.
fn doubted(value: Value, is_unknown: bool) -> Value {
    match value.reach {
        Reach::Nothing | Reach::Rows(_) if is_unknown => value.unfollowed(),
        _ => value,
    }
}
