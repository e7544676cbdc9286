//! Tokenisation of a prompt with two images: the instruction unchanged, and a new one each time.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use groot_policy::processor::text::PromptTokenizer;

const IMAGE_TOKENS: [usize; 2] = [108, 108];

fn tokenize(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer");
    let tokenizer = PromptTokenizer::load(&folder).expect("the repository's tokenizer loads");
    let instruction = "Open the top drawer, then put the bowl inside and close the drawer gently.";
    let encode = |instruction: &str| {
        let prompt = tokenizer.encode(instruction, true, &IMAGE_TOKENS);
        prompt.expect("a plain instruction is encoded")
    };

    let mut group = criterion.benchmark_group("tokenize");
    group.bench_function("cached instruction", |b| b.iter(|| encode(black_box(instruction))));
    let mut number = 0u64;
    group.bench_function("new instruction", |b| {
        b.iter(|| {
            number += 1;
            encode(black_box(&format!("{instruction} {number}")))
        })
    });
    group.finish();
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
