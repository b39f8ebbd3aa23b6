// Both kernels of pairs of images, from their pixels to the first pooling: what torch calls.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "slabs.h"

namespace learning_mechanics {
namespace {

using Tensors = std::vector<at::Tensor>;

constexpr Index kGroups = 4;  // tasks per pair, whatever the number of threads: sums stay the same

Windows windows(const at::Tensor& matrix) {
  const auto weights = matrix.accessor<double, 2>();
  Windows result(matrix.size(1));
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
}  // namespace learning_mechanics

TORCH_LIBRARY(learning_mechanics_slab, library) {
  library.def("pooled(Tensor[] tables, Tensor[] one, Tensor[] other, int[] end, Tensor(a!) sums) -> ()",
              learning_mechanics::run);
}
