// All layers on one slab at a time.
//
// The covariances of all positions p, p' with p'0 = p0 + delta, a slab [p0, p1, p1'], are closed
// under convolutions and nonlinearities, so that all layers run on slabs that fit a core's cache.
// A slab holds x = s u, u = 1 - cosine, s = sqrt(q11 q22), without loss of digits where u is small
// (where antipodes matter also y = s (1 + cosine)), or instead the covariance q itself; and the
// tangent kernel t. Mathematics and names are those of Models/infinite/layers and duals; every
// formula has its source there, and its reference.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "plan.h"

namespace learning_mechanics {

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

}  // namespace learning_mechanics
