//! From work and rates to times.

use serde::{Deserialize, Serialize};

use super::{Hardware, Path, TickWork, Work};
use crate::evaluation::Component;

/// What a part waits for on perfect hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Its weights.
    Memory,
    /// Its multiplications.
    Compute,
}

impl Bound {
    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        }
    }
}

/// The least time of a part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Which part.
    pub component: Component,
    /// What it does.
    pub work: Work,
    /// The least time in milliseconds.
    pub milliseconds: f64,
    /// What it waits for; None for several parts together, whose floors are added up.
    pub bound: Option<Bound>,
}

/// The floors of one tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FloorTable {
    /// What is computed when.
    pub path: Path,
    /// On what.
    pub hardware: Hardware,
    /// Part by part; sums after their parts.
    pub floors: Vec<Floor>,
}

impl FloorTable {
    /// The floor of a component in milliseconds, where it has one.
    pub fn milliseconds(&self, component: &Component) -> Option<f64> {
        self.floors.iter().find(|floor| floor.component == *component).map(|floor| floor.milliseconds)
    }
}

/// What is done once per tick between backbone and denoising.
pub const CONTEXT: &str = "cross K/V, state";
/// One denoising step.
pub const STEP: &str = "one denoising step";

/// The floors of a tick's parts on this hardware.
pub fn floors(tick: &TickWork, hardware: &Hardware, path: Path) -> FloorTable {
    let single = |component, work: Work| {
        let memory = work.bytes / hardware.bytes_per_second * 1e3;
        let compute = work.flops / hardware.flops_per_second * 1e3;
        let bound = if memory > compute { Bound::Memory } else { Bound::Compute };
        Floor { component, work, milliseconds: memory.max(compute), bound: Some(bound) }
    };
    let sum = |component, parts: &[&Floor]| Floor {
        component,
        work: parts.iter().map(|part| part.work).sum(),
        milliseconds: parts.iter().map(|part| part.milliseconds).sum(),
        bound: None,
    };
    let vision = single(Component::Vision, tick.vision);
    let language = single(Component::Language, tick.language);
    let backbone = sum(Component::Backbone, &[&vision, &language]);
    let context = single(Component::Other(CONTEXT.to_owned()), tick.context);
    let step = single(Component::Other(STEP.to_owned()), tick.step);
    let steps = tick.steps as f64;
    let denoising = Floor {
        component: Component::Dit,
        work: Work { flops: steps * step.work.flops, bytes: steps * step.work.bytes },
        milliseconds: steps * step.milliseconds,
        bound: step.bound,
    };
    let head = sum(Component::ActionHead, &[&context, &denoising]);
    let all = sum(Component::EndToEnd, &[&backbone, &head]);
    let floors = vec![vision, language, backbone, context, step, denoising, head, all];
    FloorTable { path, hardware: hardware.clone(), floors }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmark::{cases::Case, model_sizes::KnownModel};

    fn of(case: &str, hardware: &Hardware) -> FloorTable {
        let (sizes, case) = (KnownModel::N1d6_3b.sizes(), Case::by_name(case).unwrap());
        let shape = case.shape().unwrap();
        let path = Path::Precomputed;
        floors(&TickWork::new(&sizes.model, &sizes.eagle, &case, &shape, path), hardware, path)
    }

    fn rounded(table: &FloorTable, component: Component) -> f64 {
        (table.milliseconds(&component).unwrap() * 10.0).round() / 10.0
    }

    #[test]
    fn two_cameras_on_an_h100_that_reaches_3_tb_and_790_tflops_a_second_take_3_8_ms() {
        let table = of("2cam", &Hardware::given(3000.0, 790.0));
        assert_eq!(rounded(&table, Component::Backbone), 1.5);
        assert_eq!(rounded(&table, Component::ActionHead), 2.3);
        assert_eq!(rounded(&table, Component::EndToEnd), 3.8);
        let bound = |i: usize| table.floors[i].bound;
        // Vision by its multiplications, one denoising step by its weights.
        assert_eq!((bound(0), bound(4)), (Some(Bound::Compute), Some(Bound::Memory)));
    }

    #[test]
    fn the_floors_on_an_orin_are_those_of_the_prediction() {
        let orin = Hardware::ORIN_AGX_64.into();
        let table = of("alfie-4cam", &orin);
        let (backbone, head) = (rounded(&table, Component::Backbone), rounded(&table, Component::ActionHead));
        assert_eq!((backbone.round(), head.round()), (46.0, 34.0));
        assert_eq!(rounded(&table, Component::EndToEnd).round(), 80.0);
        // At 60 % of the FLOPs and 75 % of the bandwidth.
        let likely = Hardware::given(0.75 * 204.8, 0.6 * 42.5);
        let parts = |case: &str| {
            let table = of(case, &likely);
            [Component::Backbone, Component::ActionHead, Component::EndToEnd]
                .map(|component| rounded(&table, component).round())
        };
        assert_eq!(parts("alfie-4cam"), [76.0, 45.0, 122.0]);
        assert_eq!(parts("2cam")[2], 91.0);
        assert_eq!(parts("nvidia-1cam")[..2], [22.0, 45.0]);
    }

    #[test]
    fn a_sum_is_the_sum_of_its_parts_floors_and_not_the_floor_of_their_sum() {
        let table = of("2cam", &Hardware::H100.into());
        let ms = |component| table.milliseconds(&component).unwrap();
        let (vision, language) = (ms(Component::Vision), ms(Component::Language));
        assert_eq!(ms(Component::Backbone), vision + language);
        let step = ms(Component::Other(STEP.into()));
        assert!((ms(Component::Dit) - 4.0 * step).abs() < 1e-12);
    }
}
