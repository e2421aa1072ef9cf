//! Times the products of our models on the runtime built in, beside what `cubek-matmul` picks itself.
//!
//! ```text
//! cargo run --release -p mamba-kernels --features oracle,cuda-cpp --example time_matmul
//! ```
//!
//! `-- --help` tells the options.

#[path = "../tests/support/mod.rs"]
mod support;
mod timing;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::strategy::Strategy;
use cubek_std::InputBinding;
use mamba_kernels::matmul::{Elements, matmul};
use timing::{empty, filled, sampled_ms, spread};

/// Rows, inner and columns of a layer's product: the tutorial's layers and head, then those of Mamba-130M.
const SHAPES: [([usize; 3], ()); 9] = [
    ([4096, 128, 512], ()),
    ([4096, 256, 40], ()),
    ([4096, 8, 256], ()),
    ([4096, 256, 128], ()),
    ([1024, 128, 50264], ()),
    ([8192, 768, 3072], ()),
    ([8192, 1536, 80], ()),
    ([8192, 48, 1536], ()),
    ([8192, 1536, 768], ()),
];

const USAGE: &str = "\
Times the products of a linear layer, x w, and of its gradients, g w' and x' g.

  --dtype f32|bf16|f16           of the factors and the result; f32 without it
  --runtime default|cuda|wgpu    one of those built in
  --shape MxKxN                  rows, inner, columns of x w; nine shapes without it";

/// Whether a factor is the transpose of what is stored.
type Turned = bool;

fn main() {
    let mut kind = FloatKind::F32;
    let (device, shapes) = timing::arguments(USAGE, &SHAPES, |flag, value| {
        if flag != "--dtype" {
            return Ok(false);
        }
        kind = match value {
            "f32" => FloatKind::F32,
            "bf16" => FloatKind::BF16,
            "f16" => FloatKind::F16,
            _ => return Err(format!("--dtype {value}: expected f32, bf16 or f16")),
        };
        Ok(true)
    });
    let dtype = ElemType::Float(kind);
    let client = device.client();
    println!("{} on {}", client.name(), client.properties().identity.name);
    println!("M x K x N, product: ms (TFLOP/s); cubek's own choice, TF32 where the device has it");
    for ([m, k, n], ()) in shapes {
        let products: [(&str, [usize; 3], [Turned; 2]); 3] = [
            ("x w", [m, k, n], [false, false]),
            ("g w'", [m, n, k], [false, true]),
            ("x' g", [k, m, n], [true, false]),
        ];
        for (name, [rows, inner, columns], [left, right]) in products {
            let lhs = factor(&client, [rows, inner], left, kind);
            let rhs = factor(&client, [inner, columns], right, kind);
            let out = empty(&client, &[rows, columns], kind);
            let ours = sampled_ms(&client, || {
                let out = out.clone();
                matmul(&client, lhs.clone(), rhs.clone(), out, Elements::all(dtype))
                    .expect("ours launches");
            });
            let theirs = sampled_ms(&client, || launch_auto(&client, &lhs, &rhs, &out, dtype));
            let flops = 2.0 * (m * k * n) as f64;
            println!(
                "{m} x {k} x {n}, {name}: {} ({:.1}); {} = {:.2} x",
                spread(ours),
                flops / ours[1] / 1e9,
                spread(theirs),
                theirs[1] / ours[1],
            );
        }
    }
}

fn factor(
    client: &Client,
    [rows, columns]: [usize; 2],
    turned: Turned,
    kind: FloatKind,
) -> TensorBinding {
    let mut tensor = filled(client, &[rows, columns], kind, [-1.0, 1.0]);
    if turned {
        tensor.strides = [1, rows].into_iter().collect();
    }
    tensor
}

fn launch_auto(
    client: &Client,
    lhs: &TensorBinding,
    rhs: &TensorBinding,
    out: &TensorBinding,
    dtype: ElemType,
) {
    launch_ref(
        &Strategy::Auto,
        client,
        InputBinding::new(lhs.clone(), dtype),
        InputBinding::new(rhs.clone(), dtype),
        out.clone(),
        &mut MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: dtype,
            rhs: dtype,
            out: dtype,
        }),
    )
    .expect("the routine launches");
}
