// The mixture of K quantised versions of a tensor, and all of its gradients, in one sweep over memory each; and the search for
// the step that fits a tensor best.
//
// y = sum_k weights[k] * steps[k] * clamp(round(x / steps[k]), lower[k], upper[k]). Options of weight 0 cost nothing in
// the forward pass, and in the backward pass only the inner product <grad, Q_k(x)>, and that only where it is wanted.
// Sums are taken per block of fixed size, in double precision between blocks: results do not depend on the number of
// threads. Equals quant/mixture.py, which is the definition.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t BLOCK = 2048;  // elements: x, grad and result of a block stay in the first-level cache
constexpr int64_t GRAIN = 8;     // blocks that are worth a thread

template <typename T>
struct Option {
  T weight, lower, upper, step;
};

// Where a block starts, how long it is, and which row (filter) it lies in.
struct Blocks {
  int64_t rows, columns, per_row;
  Blocks(int64_t rows, int64_t columns)
      : rows(rows), columns(columns), per_row((columns + BLOCK - 1) / BLOCK) {}
  int64_t count() const { return rows * per_row; }
  int64_t row(int64_t block) const { return block / per_row; }
  int64_t start(int64_t block) const { return row(block) * columns + (block % per_row) * BLOCK; }
  int64_t length(int64_t block) const { return std::min(BLOCK, columns - (block % per_row) * BLOCK); }
};

// Entry k of a tensor of shape (K,), or (k, row) of one of shape (K, rows).
template <typename T>
inline T entry(const Tensor& tensor, int64_t k, int64_t row) {
  return tensor.data_ptr<T>()[tensor.dim() == 1 ? k : k * tensor.size(1) + row];
}

// NaN stays NaN, so that a loss that is not a number is seen.
template <typename T>
inline T code(T scaled, T lower, T upper) {
  T rounded = std::nearbyint(scaled);
  rounded = lower > rounded ? lower : rounded;
  return upper < rounded ? upper : rounded;
}

template <typename T>
void forward_block(const T* x, T* y, int64_t n, const Option<T>* all, int64_t K) {
  bool first = true;
  for (int64_t k = 0; k < K; ++k) {
    const T w = all[k].weight, lower = all[k].lower, upper = all[k].upper, step = all[k].step;
    if (w == T(0)) continue;
    if (first && w == T(1)) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y[i] = code(x[i] / step, lower, upper) * step;
    } else if (first) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y[i] = code(x[i] / step, lower, upper) * step * w;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y[i] += code(x[i] / step, lower, upper) * step * w;
    }
    first = false;
  }
  if (first)
    for (int64_t i = 0; i < n; ++i) y[i] = T(0);
}

// One block: sums[k] = <grad, Q_k(x)> and sums[K + k] = weights[k] <grad, dQ_k/dstep>, and grad_x.
template <typename T>
void backward_block(const T* x, const T* grad, T* grad_x, int64_t n, const Option<T>* all, int64_t K, bool need_weights,
                    double* sums) {
  bool first = true;
  for (int64_t k = 0; k < K; ++k) {
    const T w = all[k].weight, lower = all[k].lower, upper = all[k].upper, step = all[k].step;
    T product = 0, slope = 0;
    if (w == T(0)) {
      if (!need_weights) continue;
#pragma omp simd reduction(+ : product)
      for (int64_t i = 0; i < n; ++i) product += grad[i] * code(x[i] / step, lower, upper);
    } else {
      if (first) std::fill(grad_x, grad_x + n, T(0));
      first = false;
#pragma omp simd reduction(+ : product, slope)
      for (int64_t i = 0; i < n; ++i) {
        const T scaled = x[i] / step, q = code(scaled, lower, upper), g = grad[i];
        const bool inside = scaled >= lower && scaled <= upper;
        product += g * q;
        slope += g * (q - (inside ? scaled : T(0)));
        grad_x[i] += inside ? g * w : T(0);
      }
    }
    sums[k] = double(product) * step;
    sums[K + k] = double(slope) * w;
  }
  if (first) std::fill(grad_x, grad_x + n, T(0));
}

int64_t rows_of(const Tensor& steps) { return steps.dim() == 2 ? steps.size(1) : 1; }

// A tensor without gaps, its rows one after the other; whatever the order of the dimensions within a row.
Tensor dense(const Tensor& x, const Tensor& steps) {
  const bool whole = x.is_non_overlapping_and_dense();
  if (steps.dim() == 2) return whole && x.stride(0) * x.size(0) == x.numel() ? x : x.contiguous();
  return whole ? x : at::empty_like(x).copy_(x);
}

// What belongs to the options, without gaps: each of shape (K,) or, where dimension 0 of x holds filters, (K, filters).
struct Options {
  Tensor weights, steps, lower, upper;
  Options(const Tensor& x, const Tensor& w, const Tensor& s, const Tensor& l, const Tensor& u)
      : weights(w.contiguous()), steps(s.contiguous()), lower(l.contiguous()), upper(u.contiguous()) {
    for (const Tensor& t : {w, s, l, u}) {
      const bool whole = t.dim() == 1;
      const bool by_filter = t.dim() == 2 && s.dim() == 2 && x.dim() > 0 && t.size(1) == x.size(0);
      TORCH_CHECK((whole || by_filter) && t.size(0) == w.size(0), "mixture: weights ", w.sizes(), ", steps ", s.sizes(),
                  ", lower ", l.sizes(), ", upper ", u.sizes(), " do not belong together for x ", x.sizes());
    }
  }
  // The options of every row, row by row.
  template <typename T>
  std::vector<Option<T>> by_row(int64_t rows) const {
    const int64_t K = weights.size(0);
    std::vector<Option<T>> found(rows * K);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = 0; k < K; ++k)
        found[row * K + k] = {entry<T>(weights, k, row), entry<T>(lower, k, row), entry<T>(upper, k, row),
                              entry<T>(steps, k, row)};
    return found;
  }
};

Tensor mixture_forward(const Tensor& tensor, const Tensor& w, const Tensor& s, const Tensor& l, const Tensor& u) {
  const Options given(tensor, w, s, l, u);
  const Tensor x = dense(tensor, s);
  Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const int64_t rows = rows_of(s), K = w.size(0);
  const Blocks blocks(rows, x.numel() / rows);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "mixture_forward", [&] {
    const auto all = given.by_row<scalar_t>(rows);
    const scalar_t* in = x.data_ptr<scalar_t>();
    scalar_t* out = y.data_ptr<scalar_t>();
    at::parallel_for(0, blocks.count(), GRAIN, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        forward_block(in + blocks.start(b), out + blocks.start(b), blocks.length(b), &all[blocks.row(b) * K], K);
    });
  });
  return y;
}

// Writes the gradient of x; returns those of the weights and steps (shaped like them; without LSQ's scale).
std::tuple<Tensor, Tensor> gradients(const Tensor& grad, const Tensor& grad_x, const Tensor& x, const Tensor& w,
                                     const Tensor& s, const Tensor& l, const Tensor& u, bool need_weights) {
  const Options given(x, w, s, l, u);
  Tensor grad_weights = at::zeros(w.sizes(), w.options()), grad_steps = at::zeros(s.sizes(), s.options());
  if (x.numel() == 0) return {grad_weights, grad_steps};
  const int64_t rows = rows_of(s), K = w.size(0), weight_rows = w.dim() == 2 ? rows : 1;
  const Blocks blocks(rows, x.numel() / rows);
  std::vector<double> sums(blocks.count() * 2 * K, 0.0);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "mixture_backward", [&] {
    const auto all = given.by_row<scalar_t>(rows);
    const scalar_t *in = x.data_ptr<scalar_t>(), *up = grad.data_ptr<scalar_t>();
    scalar_t* out = grad_x.data_ptr<scalar_t>();
    at::parallel_for(0, blocks.count(), GRAIN, [&](int64_t begin, int64_t end) {
      scalar_t result[BLOCK];  // grad_x may be grad
      for (int64_t b = begin; b < end; ++b) {
        const int64_t at = blocks.start(b);
        backward_block(in + at, up + at, result, blocks.length(b), &all[blocks.row(b) * K], K, need_weights,
                       &sums[b * 2 * K]);
        std::copy(result, result + blocks.length(b), out + at);
      }
    });
    for (int64_t k = 0; k < K; ++k) {
      std::vector<double> products(weight_rows, 0.0), slopes(rows, 0.0);
      for (int64_t b = 0; b < blocks.count(); ++b) {
        products[weight_rows == 1 ? 0 : blocks.row(b)] += sums[b * 2 * K + k];
        slopes[blocks.row(b)] += sums[b * 2 * K + K + k];
      }
      for (int64_t r = 0; r < weight_rows; ++r)
        grad_weights.data_ptr<scalar_t>()[k * weight_rows + r] = static_cast<scalar_t>(products[r]);
      for (int64_t r = 0; r < rows; ++r) grad_steps.data_ptr<scalar_t>()[k * rows + r] = static_cast<scalar_t>(slopes[r]);
    }
  });
  return {grad_weights, grad_steps};
}

// The gradients of x, weights and steps.
std::tuple<Tensor, Tensor, Tensor> mixture_backward(const Tensor& upstream, const Tensor& tensor, const Tensor& weights,
                                                    const Tensor& steps, const Tensor& lower, const Tensor& upper,
                                                    bool need_weights) {
  const Tensor x = dense(tensor, steps);
  const Tensor grad = upstream.strides() == x.strides() ? upstream : at::empty_like(x).copy_(upstream);
  Tensor grad_x = at::empty_like(x);
  auto [grad_weights, grad_steps] = gradients(grad, grad_x, x, weights, steps, lower, upper, need_weights);
  return {grad_x, grad_weights, grad_steps};
}

// As mixture_backward, with the gradient of x in place of the upstream gradient.
std::tuple<Tensor, Tensor> mixture_backward_(Tensor& grad, const Tensor& tensor, const Tensor& weights,
                                             const Tensor& steps, const Tensor& lower, const Tensor& upper,
                                             bool need_weights) {
  const Tensor x = dense(tensor, steps);
  if (grad.strides() != x.strides()) {
    auto [grad_x, grad_weights, grad_steps] = mixture_backward(grad, tensor, weights, steps, lower, upper, need_weights);
    grad.copy_(grad_x);
    return {grad_weights, grad_steps};
  }
  auto [grad_weights, grad_steps] = gradients(grad, grad, x, weights, steps, lower, upper, need_weights);
  return {grad_weights, grad_steps};
}

// For every row of x the number of the step, of ascending candidates, with the least squared quantisation error; of equal
// ones the first. Tried from the last down: what a step cuts off bounds its error from below and only grows as steps
// shrink, so once that alone exceeds the best error no smaller step can be better.
Tensor best_steps(const Tensor& tensor, const Tensor& candidates, double low, double high) {
  TORCH_CHECK(tensor.dim() == 2 && candidates.dim() == 2 && candidates.size(0) == tensor.size(0) &&
                  tensor.scalar_type() == at::kFloat && candidates.scalar_type() == at::kFloat,
              "best_steps: x ", tensor.sizes(), " and steps ", candidates.sizes(), ": needed are float32 rows");
  const Tensor x = tensor.contiguous(), steps = candidates.contiguous();
  const int64_t rows = x.size(0), columns = x.size(1), count = steps.size(1);
  const float lower = static_cast<float>(low), upper = static_cast<float>(high);
  Tensor best = at::zeros({rows}, x.options().dtype(at::kLong));
  int64_t* found = best.data_ptr<int64_t>();
  const float *values = x.data_ptr<float>(), *all = steps.data_ptr<float>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = values + row * columns;
      double least = INFINITY;
      for (int64_t k = count - 1; k >= 0; --k) {
        const float step = all[row * count + k], from = lower * step, to = upper * step;
        double error = 0, cut_off = 0;
        for (int64_t start = 0; start < columns; start += BLOCK) {
          const int64_t stop = std::min(start + BLOCK, columns);
          float sum = 0, outside = 0;
#pragma omp simd reduction(+ : sum, outside)
          for (int64_t i = start; i < stop; ++i) {
            const float v = in[i], e = code(v / step, lower, upper) * step - v;
            const float inside = v < from ? from : (v > to ? to : v);
            sum += e * e;
            outside += (v - inside) * (v - inside);
          }
          error += sum;
          cut_off += outside;
        }
        if (error <= least) {
          least = error;
          found[row] = k;
        }
        if (cut_off > least * 1.0001) break;
      }
    }
  });
  return best;
}

}  // namespace

TORCH_LIBRARY(dnas, m) {
  const std::vector<at::Tag> tags{at::Tag::flexible_layout, at::Tag::pt2_compliant_tag};
  m.def("mixture_forward(Tensor x, Tensor weights, Tensor steps, Tensor lower, Tensor upper) -> Tensor", tags);
  m.def(
      "mixture_backward(Tensor grad, Tensor x, Tensor weights, Tensor steps, Tensor lower, Tensor upper, "
      "bool need_weights) -> (Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "mixture_backward_(Tensor(a!) grad, Tensor x, Tensor weights, Tensor steps, Tensor lower, Tensor upper, "
      "bool need_weights) -> (Tensor, Tensor)",
      tags);
  m.def("best_steps(Tensor x, Tensor steps, float lower, float upper) -> Tensor");
}

TORCH_LIBRARY_IMPL(dnas, CPU, m) {
  m.impl("mixture_forward", mixture_forward);
  m.impl("mixture_backward", mixture_backward);
  m.impl("mixture_backward_", mixture_backward_);
  m.impl("best_steps", best_steps);
}
