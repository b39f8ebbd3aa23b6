// Both kernels of pairs of images, from their pixels to the first pooling.
//
// The covariances of all positions p, p' with p'0 = p0 + delta, a slab [p0, p1, p1'], are closed
// under convolutions and nonlinearities, so that all layers run on slabs that fit a core's cache.
// A slab holds x = s u, u = 1 - cosine, s = sqrt(q11 q22), without loss of digits where u is small
// (where antipodes matter also y = s (1 + cosine)), or instead the covariance q itself; and the
// tangent kernel t. Mathematics and names are those of Models/infinite/layers and duals; every
// formula has its source there, and its reference.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using Index = int64_t;
using Tensors = std::vector<at::Tensor>;

enum Kind { kInput, kAffine, kSum, kScale, kPiecewise, kErf };

// The columns of the table of steps, and of that of their numbers; as in stack.py.
enum Column {
  kKind, kTo, kFrom, kOther, kIn, kOut, kTangent, kOtherTangent, kMakesTangent, kOpposite, kZeros,
  kSize0, kStride0, kPadding0, kDilation0, kSize1, kStride1, kPadding1, kDilation1, kColumns
};
enum Number { kFirst, kSecond, kThird, kFourth, kFifth, kNumbers };

// In place or not, no entry of a row depends on another.
#if defined(__clang__)
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_ALONE _Pragma("GCC ivdep")
#endif

constexpr Index kTogether = 5;  // features that are read in one pass; their number is a multiple
constexpr Index kGroups = 4;    // tasks per pair, whatever the number of threads: sums stay the same

// asin(sqrt z) / sqrt z on [0, 1/2], interpolated at Chebyshev's nodes to the format's rounding.
template <typename T>
struct Arcsine;

template <>
struct Arcsine<float> {
  static constexpr float terms[] = {
      1.0f, 0.1666660687031764f, 0.07503074444152627f, 0.04403983993618328f, 0.03622799913369257f,
      -0.008811484715079572f, 0.11168558727333976f, -0.1412475484116558f, 0.12660422348707723f};
};

template <>
struct Arcsine<double> {
  static constexpr double terms[] = {
      1.0, 0.16666666666664698, 0.07500000000464965, 0.04464285670805879, 0.030381965879733276,
      0.022371516088920858, 0.017365538221973773, 0.013787393522368912, 0.013339371341015819,
      -0.003617853254378451, 0.08395286854574689, -0.3173198148176277, 1.0687443494526074,
      -2.6258024403358178, 4.864605144947002, -6.492606744847992, 5.969206755315709,
      -3.3818467029693404, 0.912261948607691};
};

template <typename T>
inline T arcsine(T z) {
  constexpr auto& terms = Arcsine<T>::terms;
  constexpr int count = sizeof(terms) / sizeof(T);
  T sum = terms[count - 1];
#pragma GCC unroll 32
  for (int k = count - 2; k >= 0; --k) sum = sum * z + terms[k];
  return sum;
}

// theta of 1 - cos theta = u <= 1, and sin theta - theta cos theta.
template <typename T>
inline std::pair<T, T> angle(T u) {
  const T half = u * T(0.5), theta = 2 * std::sqrt(half) * arcsine(half);
  return {theta, std::sqrt(u * (2 - u)) - theta * (1 - u)};
}

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
  std::vector<std::vector<std::pair<Index, double>>> pool0, pool1;  // by position

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

enum How { kMinus, kPlus, kTimes };

// Sum over features of (a_f[i] -+ b_f[j])^2 or a_f[i] b_f[j]: a plane [W, W] from [F, W] of each.
template <typename T, How how, typename Width>
void accumulate(T* __restrict sum, const T* __restrict one, const T* __restrict other, Index count,
                Width W) {
  for (Index i = 0; i < W; ++i, sum += W) {
    for (Index f = 0; f < count; f += kTogether) {
      T a[kTogether];
#pragma GCC unroll 5
      for (Index k = 0; k < kTogether; ++k) a[k] = one[(f + k) * W + i];
      const T* __restrict b = other + f * W;
      for (Index j = 0; j < W; ++j) {
        T total = 0;
#pragma GCC unroll 5
        for (Index k = 0; k < kTogether; ++k) {
          const T value = b[k * W + j];
          if (how == kTimes) {
            total += a[k] * value;
          } else {
            const T difference = how == kMinus ? a[k] - value : a[k] + value;
            total += difference * difference;
          }
        }
        sum[j] = f ? sum[j] + total : total;
      }
    }
  }
}

// Calls with the width as a constant where it is that of usual images and of their halves: a row is
// then a few instructions without a loop, three times as fast.
template <typename Call>
void by_width(Index width, const Call& call) {
  switch (width) {
    case 32: return call(std::integral_constant<Index, 32>());
    case 28: return call(std::integral_constant<Index, 28>());
    case 16: return call(std::integral_constant<Index, 16>());
    case 14: return call(std::integral_constant<Index, 14>());
    case 8: return call(std::integral_constant<Index, 8>());
    default: call(width);
  }
}

// All layers on one slab at a time.
template <typename T>
class Slabs {
 public:
  explicit Slabs(const Plan<T>& plan) : plan_(plan) {
    Index width = 0;
    for (Index v = 0; v < plan.values; ++v) {
      const Index* size = plan.sizes + 2 * v;
      largest_ = std::max(largest_, size[0] * size[1] * size[1]);
      width = std::max(width, size[1]);
    }
    memory_.resize(3 * plan.slots * largest_);
    for (Index k = 0; k < plan.steps; ++k) {
      if (plan.column(k, kKind) == kAffine) frame_ = std::max(frame_, frame(k));
    }
    frames_.resize(3 * frame_ * frame_);
    plane_.resize(width * width);
    pooled_.resize(plan.outputs1 * width);
    corner_.resize(plan.outputs1 * plan.outputs1);
  }

  // Add what the slab of an offset gives to the pooled kernels q and t; twice, mirrored, where the
  // images are the same one.
  void run(Index one, Index other, Index offset, bool mirrored, double* q, double* t) {
    one_ = one, other_ = other, offset_ = offset;
    for (Index k = 0; k < plan_.steps; ++k) {
      switch (plan_.column(k, kKind)) {
        case kInput: input(k); break;
        case kAffine: affine(k); break;
        case kSum: sum(k); break;
        case kScale: scale(k); break;
        case kPiecewise: piecewise(k); break;
        case kErf: erf(k); break;
      }
    }
    pool(mirrored, q, t);
  }

 private:
  const Plan<T>& plan_;
  Index largest_ = 0, frame_ = 0, one_ = 0, other_ = 0, offset_ = 0;
  std::vector<T> memory_, frames_, plane_, pooled_;
  std::vector<double> corner_;

  T* slab(Index slot, Index which) { return memory_.data() + (3 * slot + which) * largest_; }
  Index width(Index value) const { return plan_.sizes[2 * value + 1]; }
  Rows rows(Index value) const {
    return Rows(plan_.sizes[2 * value], offset_ / plan_.strides[value], plan_.wraps);
  }
  // A map of one side at row p0: [W].
  const T* row(const T* map, Index value, Index example, Index p) const {
    const Index* size = plan_.sizes + 2 * value;
    return map + (example * size[0] + p) * size[1];
  }
  const T* roots(const Side<T>& side, Index value, Index example, Index p) const {
    return row(side.roots[value], value, example, p);
  }
  const T* features(const Side<T>& side, Index step, Index example, Index p) const {
    const Index* size = plan_.sizes + 2 * plan_.column(step, kOut);
    return side.features[step] + (example * size[0] + p) * plan_.counts[step] * size[1];
  }
  // Positions that the windows of a row reach, padding included.
  Index frame(Index step) const {
    const Index outputs = width(plan_.column(step, kOut)), size = plan_.column(step, kSize1);
    const Index reach = (outputs - 1) * plan_.column(step, kStride1) +
                        (size - 1) * plan_.column(step, kDilation1) + 1;
    return std::max(reach, plan_.column(step, kPadding1) + width(plan_.column(step, kIn)));
  }

  void input(Index k) {
    const Index value = plan_.column(k, kOut), slot = plan_.column(k, kTo), W = width(value);
    const Rows rows = this->rows(value);
    const Index count = plan_.counts[k];
    for (Index p = rows.first; p < rows.last; ++p) {
      const Index partner = rows.partner(p), start = rows.plane(p) * W * W;
      const T *a = features(plan_.one, k, one_, p), *b = features(plan_.other, k, other_, partner);
      T *x = slab(slot, 0) + start, *y = slab(slot, 1) + start;
      if (!plan_.angles) {
        accumulate<T, kTimes>(x, a, b, count, W);
        continue;
      }
      const T* roots = this->roots(plan_.one, value, one_, p);
      const T* others = this->roots(plan_.other, value, other_, partner);
      accumulate<T, kMinus>(x, a, b, count, W);
      halve(x, roots, others, W);
      if (!plan_.column(k, kOpposite)) continue;
      accumulate<T, kPlus>(y, a, b, count, W);
      halve(y, roots, others, W);
    }
  }

  // A plane times s / 2.
  template <typename Width>
  void halve(T* __restrict plane, const T* roots, const T* __restrict others, Width W) {
    for (Index i = 0; i < W; ++i, plane += W) {
      const T half = roots[i] / 2;
      for (Index j = 0; j < W; ++j) plane[j] *= half * others[j];
    }
  }

  // Sums of rows over a window, with a frame for what the window reads beyond them.
  template <typename Width>
  void gather(Index k, const Rows& rows, Index p, const T* planes, T* frame, Index side, Width W) {
    const Index pad = plan_.column(k, kPadding1);
    T* inner = frame + pad * side + pad;
    bool first = true;
    for (Index tap = 0; tap < plan_.column(k, kSize0); ++tap) {
      const Index row = rows.read(p * plan_.column(k, kStride0) +
                                  tap * plan_.column(k, kDilation0) - plan_.column(k, kPadding0));
      if (row < 0) continue;
      const T* __restrict plane = planes + rows.plane(row) * W * W;
      for (Index i = 0; i < W; ++i) {
        T* __restrict to = inner + i * side;
        const T* __restrict from = plane + i * W;
        if (first) {
          for (Index j = 0; j < W; ++j) to[j] = from[j];
        } else {
          for (Index j = 0; j < W; ++j) to[j] += from[j];
        }
      }
      first = false;
    }
    if (first) {
      for (Index i = 0; i < W; ++i) std::fill(inner + i * side, inner + i * side + W, T(0));
    }
    if (!plan_.wraps) return;
    const auto source = [&](Index i) { return pad + (i - pad + side * W) % W; };
    for (Index j = 0; j < side; ++j) {
      if (j >= pad && j < pad + W) continue;
      for (Index i = pad; i < pad + W; ++i) frame[i * side + j] = frame[i * side + source(j)];
    }
    for (Index i = 0; i < side; ++i) {
      if (source(i) != i) std::memcpy(frame + i * side, frame + source(i) * side, side * sizeof(T));
    }
  }

  // Sums along the diagonal: a plane of the result.
  template <typename Width>
  void diagonal(Index k, const T* frame, Index side, T* __restrict result, Width W) {
    const Index stride = plan_.column(k, kStride1), size = plan_.column(k, kSize1);
    const Index step = plan_.column(k, kDilation1) * (side + 1);
    for (Index i = 0; i < W; ++i, result += W, frame += stride * side) {
      if (size == 3 && stride == 1) {
        const T *a = frame, *b = frame + step, *c = frame + 2 * step;
        for (Index j = 0; j < W; ++j) result[j] = a[j] + b[j] + c[j];
        continue;
      }
      for (Index j = 0; j < W; ++j) result[j] = frame[j * stride];
      for (Index tap = 1; tap < size; ++tap) {
        const T* from = frame + tap * step;
        for (Index j = 0; j < W; ++j) result[j] += from[j * stride];
      }
    }
  }

  void affine(Index k) {
    const Index in = plan_.column(k, kIn), out = plan_.column(k, kOut);
    const Rows before = rows(in), after = rows(out);
    const Index from = plan_.column(k, kFrom), to = plan_.column(k, kTo), side = frame(k);
    const bool used[] = {true, bool(plan_.column(k, kOpposite)), bool(plan_.column(k, kTangent))};
    std::fill(frames_.begin(), frames_.end(), T(0));
    for (Index p = after.first; p < after.last; ++p) {
      T* planes[3];
      for (Index which = 0; which < 3; ++which) {
        T* frame = frames_.data() + which * frame_ * frame_;
        planes[which] = slab(to, which) + after.plane(p) * width(out) * width(out);
        if (!used[which]) continue;
        by_width(width(in), [&](auto W) { gather(k, before, p, slab(from, which), frame, side, W); });
        by_width(width(out), [&](auto W) { diagonal(k, frame, side, planes[which], W); });
      }
      by_width(width(out), [&](auto W) {
        weigh(k, p, after.partner(p), planes[0], planes[1], planes[2], W);
      });
    }
  }

  // A plane over which windows are summed, with variances of weights and biases.
  template <typename Width>
  void weigh(Index k, Index p, Index partner, T* __restrict x, T* __restrict y, T* __restrict t,
             Width W) {
    const Index out = plan_.column(k, kOut);
    const T scale = plan_.number(k, kFirst), bias = plan_.number(k, kSecond);
    const T ratio = plan_.number(k, kThird), shift = plan_.number(k, kFourth);
    const bool tangent = plan_.column(k, kMakesTangent), opposite = plan_.column(k, kOpposite);
    const T old = plan_.column(k, kTangent) ? scale : T(0);
    if (tangent && old == 0) std::fill(t, t + W * W, T(0));
    if (!plan_.angles) {
      for (Index j = 0; j < W * W; ++j) x[j] = scale * x[j] + bias;
      for (Index j = 0; tangent && j < W * W; ++j) t[j] = ratio * x[j] + shift + old * t[j];
      return;
    }
    const T* __restrict apart = plane_.data();
    accumulate<T, kMinus>(plane_.data(), features(plan_.one, k, one_, p),
                          features(plan_.other, k, other_, partner), plan_.counts[k], W);
    const T* __restrict roots = this->roots(plan_.one, out, one_, p);
    const T* __restrict others = this->roots(plan_.other, out, other_, partner);
    for (Index i = 0; i < W; ++i, x += W, y += W, t += W, apart += W) {
      const T root = roots[i], half = root / 2;
      for (Index j = 0; j < W; ++j) x[j] = scale * x[j] + half * others[j] * apart[j];
      if (opposite) {
        for (Index j = 0; j < W; ++j) {
          y[j] = scale * y[j] + half * others[j] * apart[j] + 2 * bias;
        }
      }
      if (!tangent) continue;
      for (Index j = 0; j < W; ++j) {
        t[j] = ratio * (root * others[j] - x[j]) + shift + old * t[j];
      }
    }
  }

  void sum(Index k) {
    const Index out = plan_.column(k, kOut), W = width(out), to = plan_.column(k, kTo);
    const Rows rows = this->rows(out);
    const Index slots[] = {plan_.column(k, kFrom), plan_.column(k, kOther)};
    const T one = plan_.column(k, kTangent), other = plan_.column(k, kOtherTangent);
    std::fill(plane_.begin(), plane_.end(), T(0));
    for (Index p = rows.first; p < rows.last; ++p) {
      const Index partner = rows.partner(p), start = rows.plane(p) * W * W;
      if (plan_.angles) {
        accumulate<T, kMinus>(plane_.data(), features(plan_.one, k, one_, p),
                              features(plan_.other, k, other_, partner), plan_.counts[k], W);
        halve(plane_.data(), roots(plan_.one, out, one_, p),
              roots(plan_.other, out, other_, partner), W);
      }
      for (Index which = 0; which < 1 + plan_.column(k, kOpposite); ++which) {
        const T *a = slab(slots[0], which) + start, *b = slab(slots[1], which) + start;
        T* x = slab(to, which) + start;
        EACH_ALONE
        for (Index j = 0; j < W * W; ++j) x[j] = a[j] + b[j] + plane_[j];
      }
      if (one == 0 && other == 0) continue;
      const T *a = slab(slots[0], 2) + start, *b = slab(slots[1], 2) + start;
      T* t = slab(to, 2) + start;
      EACH_ALONE
      for (Index j = 0; j < W * W; ++j) t[j] = (one ? a[j] : T(0)) + (other ? b[j] : T(0));
    }
  }

  // Multiplication by a number, of which this is the square.
  void scale(Index k) {
    const Index value = plan_.column(k, kIn), size = width(value) * width(value);
    const Rows rows = this->rows(value);
    const bool used[] = {true, bool(plan_.column(k, kOpposite)), bool(plan_.column(k, kTangent))};
    const T square = plan_.number(k, kFirst);
    for (Index which = 0; which < 3; ++which) {
      const T* from = slab(plan_.column(k, kFrom), which);
      T* to = slab(plan_.column(k, kTo), which);
      EACH_ALONE
      for (Index j = 0; used[which] && j < (rows.last - rows.first) * size; ++j) {
        to[j] = square * from[j];
      }
    }
  }

  // q <- K(q), t <- t K' of a min(x, 0) + b max(x, 0); in place or not.
  void piecewise(Index k) {
    const Index value = plan_.column(k, kIn), from = plan_.column(k, kFrom);
    const Index to = plan_.column(k, kTo);
    const Rows rows = this->rows(value);
    for (Index p = rows.first; p < rows.last; ++p) {
      const Index start = rows.plane(p) * width(value) * width(value);
      const T *x = slab(from, 0) + start, *y = slab(from, 1) + start, *t = slab(from, 2) + start;
      T *result = slab(to, 0) + start, *product = slab(to, 2) + start;
      by_width(width(value), [&](auto W) {
        if (plan_.column(k, kOpposite)) {
          turn<true>(k, p, rows.partner(p), x, y, result, W);
        } else {
          turn<false>(k, p, rows.partner(p), x, y, result, W);
        }
        if (!plan_.column(k, kTangent)) return;
        if (plan_.column(k, kZeros)) mend(k, p, rows.partner(p));
        const T* slope = plane_.data();
        EACH_ALONE
        for (Index j = 0; j < W * W; ++j) product[j] = t[j] * slope[j];
      });
    }
  }

  template <bool opposite, typename Width>
  void turn(Index k, Index p, Index partner, const T* x, const T* y, T* result, Width W) {
    const Index value = plan_.column(k, kIn);
    const T r = plan_.number(k, kFirst), square = plan_.number(k, kSecond);
    const T kink = plan_.number(k, kThird), share = r / T(M_PI);
    const T* __restrict roots = this->roots(plan_.one, value, one_, p);
    const T* __restrict others = this->roots(plan_.other, value, other_, partner);
    const T* __restrict inverse = row(plan_.one.inverses[k], value, one_, p);
    const T* __restrict inverses = row(plan_.other.inverses[k], value, other_, partner);
    T* __restrict slope = plane_.data();
    for (Index i = 0; i < W; ++i, x += W, y += W, result += W, slope += W) {
      const T scale = square * roots[i], divisor = inverse[i];
      EACH_ALONE
      for (Index j = 0; j < W; ++j) {
        const T factor = divisor * inverses[j], u = x[j] * factor;
        const T v = opposite ? y[j] * factor : 2 - u;  // 1 + cosine
        const bool acute = u <= v;
        T least = acute ? u : v;
        least = least > 0 ? least : T(0);
        const auto [theta, rise] = angle(least);
        const T near = u - share * rise, far = (2 - r) + (r - 1) * v - share * rise;
        T turned = acute ? near : far;
        turned = turned > 0 ? turned : T(0);
        result[j] = scale * others[j] * turned;
        slope[j] = square - kink * (acute ? theta : T(M_PI) - theta);
      }
    }
  }

  // f'(0) in the place of f' where a variance is zero.
  void mend(Index k, Index p, Index partner) {
    const Index value = plan_.column(k, kIn), W = width(value);
    const T once = plan_.number(k, kFourth), twice = plan_.number(k, kFifth);
    const T* roots = this->roots(plan_.one, value, one_, p);
    const T* others = this->roots(plan_.other, value, other_, partner);
    for (Index i = 0; i < W; ++i) {
      for (Index j = 0; j < W; ++j) {
        if (roots[i] != 0 && others[j] != 0) continue;
        plane_[i * W + j] = roots[i] == 0 && others[j] == 0 ? twice : once;
      }
    }
  }

  // q <- K(q), t <- t K' of a erf(b x) + c.
  void erf(Index k) {
    const Index value = plan_.column(k, kIn), W = width(value);
    const Rows rows = this->rows(value);
    const Index from = plan_.column(k, kFrom), to = plan_.column(k, kTo);
    const bool tangent = plan_.column(k, kTangent);
    const T twice = plan_.number(k, kFirst), factor = plan_.number(k, kSecond);
    const T slope = plan_.number(k, kThird), shift = plan_.number(k, kFourth);
    for (Index p = rows.first; p < rows.last; ++p) {
      const Index partner = rows.partner(p);
      const T* one = row(plan_.one.inverses[k], value, one_, p);  // sqrt(1 + 2 b^2 q11)
      const T* __restrict others = row(plan_.other.inverses[k], value, other_, partner);
      for (Index i = 0; i < W; ++i) {
        const Index start = rows.plane(p) * W * W + i * W;
        const T *x = slab(from, 0) + start, *t = slab(from, 2) + start;
        T *result = slab(to, 0) + start, *product = slab(to, 2) + start;
        T* __restrict slopes = plane_.data();
        EACH_ALONE
        for (Index j = 0; j < W; ++j) {
          const T root = one[i] * others[j], y = twice * x[j], size = std::abs(y);
          const T rest = (root - size) * (root + size);  // R^2
          // asin(y / root) = pi/2 - theta where cos theta = y / root, without cancellation in R.
          const T theta = angle(rest / (root * (root + size))).first;
          const T turned = factor * (T(M_PI_2) - theta);
          result[j] = (y < 0 ? -turned : turned) + shift;
          slopes[j] = slope / std::sqrt(rest);
        }
        if (!tangent) continue;
        EACH_ALONE
        for (Index j = 0; j < W; ++j) product[j] = t[j] * slopes[j];
      }
    }
  }

  void pool(bool mirrored, double* q, double* t) {
    const Index W = width(plan_.end);
    const Rows rows = this->rows(plan_.end);
    for (Index p = rows.first; p < rows.last; ++p) {
      const Index partner = rows.partner(p), start = rows.plane(p) * W * W;
      const T* x = slab(plan_.end_slot, 0) + start;
      const T* one = roots(plan_.one, plan_.end, one_, p);
      const T* __restrict s = roots(plan_.other, plan_.end, other_, partner);
      reduce(W, [&](Index i, T weight, T* __restrict total) {
        const T* __restrict row = x + i * W;
        if (plan_.angles) {
          for (Index j = 0; j < W; ++j) total[j] += weight * (one[i] * s[j] - row[j]);
        } else {
          for (Index j = 0; j < W; ++j) total[j] += weight * row[j];
        }
      });
      add(p, partner, mirrored, q);
      if (!plan_.end_tangent) continue;
      const T* planes = slab(plan_.end_slot, 2) + start;
      reduce(W, [&](Index i, T weight, T* __restrict total) {
        const T* __restrict row = planes + i * W;
        for (Index j = 0; j < W; ++j) total[j] += weight * row[j];
      });
      add(p, partner, mirrored, t);
    }
  }

  // One plane [p1, p1'] over the windows of both columns.
  template <typename Row>
  void reduce(Index W, const Row& row) {
    std::fill(pooled_.begin(), pooled_.end(), T(0));
    for (Index i = 0; i < W; ++i) {
      for (const auto& [output, weight] : plan_.pool1[i]) row(i, T(weight), &pooled_[output * W]);
    }
    std::fill(corner_.begin(), corner_.end(), 0.0);
    for (Index output = 0; output < plan_.outputs1; ++output) {
      for (Index j = 0; j < W; ++j) {
        for (const auto& [second, weight] : plan_.pool1[j]) {
          corner_[output * plan_.outputs1 + second] += weight * pooled_[output * W + j];
        }
      }
    }
  }

  // Its share of the windows of both rows, [P0, P1, P0', P1'].
  void add(Index p, Index partner, bool mirrored, double* total) const {
    const Index rows = plan_.outputs0, columns = plan_.outputs1;
    for (const auto& [a, first] : plan_.pool0[p]) {
      for (const auto& [b, second] : plan_.pool0[partner]) {
        const double weight = first * second;
        for (Index c = 0; c < columns; ++c) {
          for (Index d = 0; d < columns; ++d) {
            const double part = weight * corner_[c * columns + d];
            total[((a * columns + c) * rows + b) * columns + d] += part;
            if (mirrored) total[((b * columns + d) * rows + a) * columns + c] += part;
          }
        }
      }
    }
  }
};

std::vector<std::vector<std::pair<Index, double>>> windows(const at::Tensor& matrix) {
  const auto weights = matrix.accessor<double, 2>();
  std::vector<std::vector<std::pair<Index, double>>> result(matrix.size(1));
  for (Index output = 0; output < matrix.size(0); ++output) {
    for (Index p = 0; p < matrix.size(1); ++p) {
      if (weights[output][p] != 0) result[p].emplace_back(output, weights[output][p]);
    }
  }
  return result;
}

template <typename T>
std::vector<const T*> pointers(const Tensors& tensors) {
  std::vector<const T*> result;
  for (const auto& tensor : tensors) {
    result.push_back(tensor.numel() ? tensor.const_data_ptr<T>() : nullptr);
  }
  return result;
}

template <typename T>
void compute(const Plan<T>& plan, const at::Tensor& offsets, const at::Tensor& same, double* sums) {
  const Index pairs = same.numel(), m = same.size(1), count = offsets.size(0);
  const Index outputs = plan.outputs(), kernels = 1 + plan.end_tangent;
  const bool* twins = same.const_data_ptr<bool>();
  const Index* shifts = offsets.const_data_ptr<Index>();  // [count, 2]: delta, how often if twins
  // As many threads as torch uses; which of them does a task does not matter.
#pragma omp parallel num_threads(std::min<int>(pairs * kGroups, at::get_num_threads()))
  {
    Slabs<T> slabs(plan);
#pragma omp for schedule(dynamic)
    for (Index task = 0; task < pairs * kGroups; ++task) {
      const Index pair = task / kGroups;
      double* q = sums + task * kernels * outputs;
      for (Index k = task % kGroups; k < count; k += kGroups) {
        const Index times = twins[pair] ? shifts[2 * k + 1] : 1;
        if (times) slabs.run(pair / m, pair % m, shifts[2 * k], times == 2, q, q + outputs);
      }
    }
  }
}

template <typename T>
void pooled(const Tensors& tables, const Tensors& one, const Tensors& other,
            const std::vector<Index>& end, double* sums) {
  const Index steps = tables[0].size(0), values = tables[2].size(0);
  const auto side = [&](const Tensors& maps) {
    const auto all = pointers<T>(maps);
    return Side<T>{{all.begin(), all.begin() + values},
                   {all.begin() + values, all.begin() + values + steps},
                   {all.begin() + values + steps, all.end()}};
  };
  const Plan<T> plan{steps, values, end[0], tables[0].const_data_ptr<Index>(),
                     tables[1].const_data_ptr<double>(), tables[2].const_data_ptr<Index>(),
                     tables[3].const_data_ptr<Index>(), tables[4].const_data_ptr<Index>(),
                     end[1] != 0, end[2] != 0, side(one), side(other), end[3], end[4], end[5] != 0,
                     tables[5].size(0), tables[6].size(0), windows(tables[5]), windows(tables[6])};
  compute(plan, tables[7], tables[8], sums);
}

void run(at::TensorList tables, at::TensorList one, at::TensorList other, at::IntArrayRef end,
         at::Tensor sums) {
  const auto call = one[0].scalar_type() == at::kFloat ? pooled<float> : pooled<double>;
  call(tables.vec(), one.vec(), other.vec(), end.vec(), sums.mutable_data_ptr<double>());
}

}  // namespace

TORCH_LIBRARY(learning_mechanics_slab, library) {
  library.def("pooled(Tensor[] tables, Tensor[] one, Tensor[] other, int[] end, Tensor(a!) sums) -> ()",
              run);
}
