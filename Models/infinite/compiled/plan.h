// What is computed: the steps of a stack of layers, and what is known of each side of a tile.

#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "numerics.h"

namespace learning_mechanics {

enum Kind { kInput, kAffine, kSum, kScale, kPiecewise, kErf };

// The columns of the table of steps, and of that of their numbers; as in stack.py.
enum Column {
  kKind, kTo, kFrom, kOther, kIn, kOut, kTangent, kOtherTangent, kMakesTangent, kOpposite, kZeros,
  kSize0, kStride0, kPadding0, kDilation0, kSize1, kStride1, kPadding1, kDilation1, kColumns
};
enum Number { kFirst, kSecond, kThird, kFourth, kFifth, kNumbers };

// By position, the windows of the pooling that hold it, and its weight in each.
using Windows = std::vector<std::vector<std::pair<Index, double>>>;

// What one side of a tile knows: maps [n, H, W] and features [n, H, F, W].
template <typename T>
struct Side {
  std::vector<const T*> roots;      // of values
  std::vector<const T*> inverses;   // of steps: what their nonlinearity divides by
  std::vector<const T*> features;   // of steps
};

template <typename T>
struct Plan {
  Index steps, values, slots;
  const Index* table;
  const double* numbers;
  const Index* sizes;     // of values, H and W
  const Index* strides;   // of values, in the first dimension
  const Index* counts;    // features of each step
  bool angles, wraps;
  Side<T> one, other;
  Index end, end_slot;    // the value that is pooled, and where it lies
  bool end_tangent;
  Index outputs0, outputs1;
  Windows pool0, pool1;   // of rows, of columns

  Index column(Index step, Column k) const { return table[step * kColumns + k]; }
  T number(Index step, Number k) const { return T(numbers[step * kNumbers + k]); }
  Index outputs() const { return outputs0 * outputs0 * outputs1 * outputs1; }
};

// Which rows p0 of a value a slab holds, and p0' of each.
struct Rows {
  Index height, shift, first, last;
  bool wraps;

  Rows(Index height, Index shift, bool wraps)
      : height(height), shift(shift), first(wraps ? 0 : std::max<Index>(0, -shift)),
        last(wraps ? height : std::min(height, height - shift)), wraps(wraps) {}

  Index partner(Index p) const { return wraps ? (p + shift) % height : p + shift; }
  Index plane(Index p) const { return p - first; }
  // The row p + k that a window reads, -1 if there is none.
  Index read(Index p) const {
    if (wraps) return (p + height) % height;
    return p >= first && p < last ? p : -1;
  }
};

}  // namespace learning_mechanics
