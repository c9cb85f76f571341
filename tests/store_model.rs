//! The store engine against a model: random operations, same answers, always.

use crate::model::{Random, Shape, World, seeds};
use ddsnap::block::WriteAt;
use ddsnap::block::memory::Memory;
use ddsnap::store::FullPolicy;
use std::sync::Arc;

/// A world of `shape` with a random origin.
fn world(shape: Shape, seed: u64) -> World {
    let mut random = Random(seed);
    let bytes = random.bytes(ddsnap::units::index(shape.origin_size));
    let origin: Arc<dyn WriteAt> = Arc::new(Memory::from_bytes(&bytes).named("origin"));
    let store: Arc<dyn WriteAt> = Arc::new(Memory::new(shape.store_size).named("store"));
    World::new(store, origin, shape.chunk_size, random.next())
}

/// Runs `steps` random operations, comparing every answer every `every` steps.
fn run(world: &mut World, seed: u64, steps: usize, every: usize) {
    for step in 0..steps {
        let label = world.step();
        if step % every == every - 1 || step + 1 == steps {
            world.check(&format!("seed {seed} step {step} ({label})"));
        }
    }
}

#[test]
fn roomy_stores_answer_like_the_model() {
    for seed in seeds(16) {
        let chunk_size = if seed % 2 == 0 { 4096 } else { 16384 };
        let origin_size = (300 << 10) + seed * 37_123 % (700 << 10);
        let mut world = world(Shape { store_size: 48 << 20, origin_size, chunk_size }, seed);
        run(&mut world, seed, 120, 4);
    }
}

#[test]
fn full_stores_give_up_snapshots_in_order_and_keep_the_rest() {
    let (mut refused, mut lost) = (0, 0);
    for seed in seeds(24) {
        let chunk_size = if seed % 3 == 0 { 16384 } else { 4096 };
        let origin_size = (300 << 10) + seed * 51_777 % (700 << 10);
        let store_size = (5 << 19) + seed * 311_111 % (3 << 20);
        let mut world = world(Shape { store_size, origin_size, chunk_size }, seed);
        world.tight = true;
        world.snapshots_max = 4 + world.random.pick(12);
        world.squash = seed % 4 == 0;
        if world.squash {
            world.writer.as_mut().expect("open").set_full_policy(FullPolicy::Squash).expect("policy");
        }
        run(&mut world, seed, 250, 10);
        refused += world.refused;
        lost += world.lost;
    }
    eprintln!("refused {refused}, given up {lost}");
}
