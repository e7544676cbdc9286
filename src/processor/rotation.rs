//! End-effector poses as translation and six rotation numbers.
//!
//! The six numbers are the first two **rows** of the rotation matrix. Any six numbers are made into a rotation by
//! Gram-Schmidt: normalise the first row, take its share out of the second and normalise that, complete with the cross
//! product (Zhou et al., "On the Continuity of Rotation Representations in Neural Networks", 2019).

/// Number of values of a pose: x, y, z and six rotation numbers.
pub const POSE_DIM: usize = 9;

/// Below this length a row has no direction to speak of: rows are of length one, and f32 resolves 1e-7 of that.
const SHORTEST_ROW: f64 = 1e-9;

type Vector3 = [f64; 3];

/// A rigid transform.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pose {
    translation: Vector3,
    /// Rows of the rotation matrix.
    rotation: [Vector3; 3],
}

impl Pose {
    /// A pose from x, y, z and six rotation numbers; `None` if these determine no rotation (a row of zeros, or parallel
    /// rows).
    pub fn from_xyz_rot6d([x, y, z, a, b, c, d, e, f]: [f64; POSE_DIM]) -> Option<Self> {
        let first = unit([a, b, c])?;
        let second = [d, e, f];
        let share = dot(first, second);
        let second = unit(std::array::from_fn(|i| second[i] - share * first[i]))?;
        Some(Self { translation: [x, y, z], rotation: [first, second, cross(first, second)] })
    }

    /// x, y, z and the first two rows of the rotation matrix.
    pub fn to_xyz_rot6d(self) -> [f64; POSE_DIM] {
        let [x, y, z] = self.translation;
        let [[a, b, c], [d, e, f], _] = self.rotation;
        [x, y, z, a, b, c, d, e, f]
    }

    /// `self` · `relative`: the pose that `relative` describes in the frame of `self`.
    pub fn compose(&self, relative: &Self) -> Self {
        let columns = transpose(relative.rotation);
        let moved = self.rotate(relative.translation);
        Self {
            translation: std::array::from_fn(|i| moved[i] + self.translation[i]),
            rotation: self.rotation.map(|row| columns.map(|column| dot(row, column))),
        }
    }

    /// `reference`⁻¹ · `self`: this pose as seen from `reference`; `reference.compose` undoes it.
    pub fn relative_to(&self, reference: &Self) -> Self {
        reference.inverse().compose(self)
    }

    fn inverse(&self) -> Self {
        let inverse = Self { translation: [0.0; 3], rotation: transpose(self.rotation) };
        Self { translation: inverse.rotate(self.translation).map(|v| -v), ..inverse }
    }

    fn rotate(&self, vector: Vector3) -> Vector3 {
        self.rotation.map(|row| dot(row, vector))
    }
}

fn dot(a: Vector3, b: Vector3) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: Vector3, b: Vector3) -> Vector3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn transpose(rows: [Vector3; 3]) -> [Vector3; 3] {
    std::array::from_fn(|column| rows.map(|row| row[column]))
}

fn unit(vector: Vector3) -> Option<Vector3> {
    let length = dot(vector, vector).sqrt();
    (length > SHORTEST_ROW && length.is_finite()).then(|| vector.map(|v| v / length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_close(found: [f64; POSE_DIM], expected: [f64; POSE_DIM], tolerance: f64) {
        let worst = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance, "{found:?} against {expected:?}: {worst}");
    }

    #[test]
    fn rows_are_made_orthonormal_in_order() {
        // First row (0, 3, 4) / 5; the second, (1, 5, 0), loses its share 3 along it: (1, 5 - 1.8, -2.4) = (1, 3.2, -2.4),
        // of length sqrt(17).
        let pose = Pose::from_xyz_rot6d([1.0, 2.0, 3.0, 0.0, 3.0, 4.0, 1.0, 5.0, 0.0]).unwrap();
        let n = 17f64.sqrt();
        assert_close(pose.to_xyz_rot6d(), [1.0, 2.0, 3.0, 0.0, 0.6, 0.8, 1.0 / n, 3.2 / n, -2.4 / n], 1e-15);
    }

    #[test]
    fn a_relative_pose_is_turned_and_shifted_by_its_reference() {
        // The reference stands at (1, 2, 3), turned by +90 degrees about z: rows (0, -1, 0), (1, 0, 0). The relative pose
        // goes 1 along x and turns by +90 degrees about x: rows (1, 0, 0), (0, 0, -1). By hand: translation
        // (1, 2, 3) + R (1, 0, 0) = (1, 3, 3); R_ref R_rel has rows (0, 0, 1), (1, 0, 0).
        let reference = Pose::from_xyz_rot6d([1.0, 2.0, 3.0, 0.0, -1.0, 0.0, 1.0, 0.0, 0.0]).unwrap();
        let relative = Pose::from_xyz_rot6d([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0]).unwrap();
        let absolute = reference.compose(&relative);
        assert_close(absolute.to_xyz_rot6d(), [1.0, 3.0, 3.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], 1e-15);
        assert_close(absolute.relative_to(&reference).to_xyz_rot6d(), relative.to_xyz_rot6d(), 1e-15);
    }

    #[test]
    fn rows_without_a_direction_determine_no_rotation() {
        for rows in [
            [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 2.0, 3.0, -2.0, -4.0, -6.0],
            [f64::INFINITY, 0.0, 0.0, 0.0, 1.0, 0.0],
            [f64::NAN, 0.0, 0.0, 0.0, 1.0, 0.0],
        ] {
            let [a, b, c, d, e, f] = rows;
            assert_eq!(Pose::from_xyz_rot6d([0.0, 0.0, 0.0, a, b, c, d, e, f]), None);
        }
    }

    fn pose() -> impl Strategy<Value = Pose> {
        proptest::array::uniform9(-2.0..2.0f64).prop_filter_map("rows too close to parallel", |values| {
            let [.., a, b, c, d, e, f] = values;
            let area = cross([a, b, c], [d, e, f]);
            (dot(area, area) > 1e-4).then(|| Pose::from_xyz_rot6d(values))?
        })
    }

    proptest! {
        #[test]
        fn rotations_are_orthonormal_and_right_handed(pose in pose()) {
            let [a, b, c] = pose.rotation;
            for (u, v, expected) in [(a, a, 1.0), (b, b, 1.0), (c, c, 1.0), (a, b, 0.0), (b, c, 0.0), (c, a, 0.0)] {
                prop_assert!((dot(u, v) - expected).abs() < 1e-12);
            }
            prop_assert!((dot(cross(a, b), c) - 1.0).abs() < 1e-12);
        }

        #[test]
        fn composing_undoes_relating(pose in pose(), reference in pose()) {
            let back = reference.compose(&pose.relative_to(&reference));
            assert_close(back.to_xyz_rot6d(), pose.to_xyz_rot6d(), 1e-12);
        }

        #[test]
        fn six_numbers_of_a_rotation_are_kept(pose in pose()) {
            let again = Pose::from_xyz_rot6d(pose.to_xyz_rot6d()).unwrap();
            assert_close(again.to_xyz_rot6d(), pose.to_xyz_rot6d(), 1e-14);
        }
    }
}
