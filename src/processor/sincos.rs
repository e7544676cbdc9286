//! Sine and cosine in f32 with the same last digit as the reference.
//!
//! The reference encodes angles with NumPy, whose f32 kernel on every x86-64 processor with FMA (and on 64-bit Arm) is a
//! polynomial of its own; one result in ten differs from the C library's in the last digit. The same steps in
//! scalar form give the same digits: subtract the nearest multiple of π/2, held in three parts (Cody and Waite), evaluate
//! the odd or even polynomial on [-π/4, π/4], choose by quadrant. Each multiply-add rounds once.

/// Beyond these magnitudes three parts of π/2 no longer suffice and NumPy asks the C library.
const SIN_RANGE: f32 = 117_435.99;
const COS_RANGE: f32 = 71_476.06;

const TWO_OVER_PI: f32 = f32::from_bits(0x3f22_f983);
/// -π/2 in three parts of falling weight.
const MINUS_HALF_PI: [f32; 3] =
    [f32::from_bits(0xbfc9_0fd8), f32::from_bits(0xb4a8_885a), f32::from_bits(0xa7c2_34c4)];
/// Coefficients of x⁹, x⁷, x⁵, x³.
const SIN_POLYNOMIAL: [f32; 4] = [
    f32::from_bits(0x363e_9dde),
    f32::from_bits(0xb950_35dd),
    f32::from_bits(0x3c08_88cd),
    f32::from_bits(0xbe2a_aaab),
];
/// Coefficients of x⁸, x⁶, x⁴, x², 1.
const COS_POLYNOMIAL: [f32; 5] =
    [f32::from_bits(0x37cc_730b), f32::from_bits(0xbab6_036e), f32::from_bits(0x3d2a_aa9e), -0.5, 1.0];

/// Sine of `x` radians.
pub(crate) fn sin(x: f32) -> f32 {
    if x.abs() <= SIN_RANGE { reduced(x, 0) } else { x.sin() }
}

/// Cosine of `x` radians.
pub(crate) fn cos(x: f32) -> f32 {
    if x.abs() <= COS_RANGE { reduced(x, 1) } else { x.cos() }
}

/// sin(x + quarter_turns · π/2).
fn reduced(x: f32, quarter_turns: i32) -> f32 {
    let nearest = (x * TWO_OVER_PI).round_ties_even();
    // NumPy's rounding trick yields +0 where rounding gives -0; the sign decides the sign of sin(-0).
    let nearest = nearest + 0.0;
    let r = MINUS_HALF_PI.iter().fold(x, |r, &part| nearest.mul_add(part, r));
    let r2 = r * r;
    // |x| is bounded by the callers, so that the quadrant fits.
    let quadrant = nearest as i32 + quarter_turns;
    let value = if quadrant & 1 == 0 {
        let [first, rest @ ..] = SIN_POLYNOMIAL;
        let odd = rest.iter().fold(first, |sum, &c| sum.mul_add(r2, c));
        // Adding 0 turns -0 into +0, without which sin(-0) would be +0.
        odd.mul_add(r2, 0.0).mul_add(r, r)
    } else {
        let [first, rest @ ..] = COS_POLYNOMIAL;
        rest.iter().fold(first, |sum, &c| sum.mul_add(r2, c))
    };
    if quadrant & 2 == 0 { value } else { 0.0 - value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of x, np.sin(x), np.cos(x) from NumPy 1.26.4 on x86-64 with AVX-512; x in the comment.
    const NUMPY: [(u32, u32, u32); 23] = [
        (0x00000000, 0x00000000, 0x3f800000), // 0.0
        (0x80000000, 0x80000000, 0x3f800000), // -0.0
        (0x2edbe6ff, 0x2edbe6ff, 0x3f800000), // 1e-10
        (0x3dcccccd, 0x3dcc7577, 0x3f7eb898), // 0.1
        (0x3f000000, 0x3ef57744, 0x3f60a940), // 0.5
        (0x3f490fd8, 0x3f3504f1, 0x3f3504f5), // 0.785398
        (0x3f490fdb, 0x3f3504f3, 0x3f3504f3), // 0.7853982
        (0x3f800000, 0x3f576aa5, 0x3f0a5140), // 1.0
        (0x3fc90fda, 0x3f800000, 0x33a22169), // 1.5707963
        (0x3fc90fdb, 0x3f800000, 0xb33bbd2e), // 1.5707964
        (0x40000000, 0x3f68c7b7, 0xbed51132), // 2.0
        (0x4016cbe4, 0x3f3504f3, 0xbf3504f3), // 2.3561945
        (0x40490fdb, 0xb3bbbd2e, 0xbf800000), // 3.1415927
        (0xc0490fdb, 0x33bbbd2e, 0xbf800000), // -3.1415927
        (0x40800000, 0xbf41bdcf, 0xbf275530), // 4.0
        (0xc0b00000, 0x3f349e4a, 0x3f356b62), // -5.5
        (0x40c90fdb, 0x343bbd2e, 0x3f800000), // 6.2831855
        (0x42c88000, 0xbe8df805, 0x3f75f639), // 100.25
        (0xc49a5000, 0xbe14e299, 0xbf7d4796), // -1234.5
        (0x478b9a00, 0xbf7f9dd4, 0x3d601c54), // 71476.0
        (0x478b9a80, 0xbefca5c6, 0x3f5ea96f), // 71477.0
        (0x47e55df3, 0xbcc01d62, 0xbf7fedfa), // 117435.9
        (0x49742400, 0xbeb33259, 0x3f6fcefd), // 1000000.0
    ];

    #[test]
    fn the_last_digit_is_numpys() {
        for (x, sine, cosine) in NUMPY {
            let value = f32::from_bits(x);
            assert_eq!(sin(value).to_bits(), sine, "sin({value})");
            assert_eq!(cos(value).to_bits(), cosine, "cos({value})");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_true_value_is_never_far(x in -1e5f32..1e5) {
            let (sine, cosine) = f64::from(x).sin_cos();
            proptest::prop_assert!((f64::from(sin(x)) - sine).abs() < 1.5e-7);
            proptest::prop_assert!((f64::from(cos(x)) - cosine).abs() < 1.5e-7);
        }
    }
}
