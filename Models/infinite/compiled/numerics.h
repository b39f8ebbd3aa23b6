// What the layers compute entry by entry, and plane by plane.

#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace learning_mechanics {

using Index = int64_t;

// In place or not, no entry of a row depends on another.
#if defined(__clang__)
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_ALONE _Pragma("GCC ivdep")
#endif

constexpr Index kTogether = 5;  // features that are read in one pass; their number is a multiple

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

}  // namespace learning_mechanics
