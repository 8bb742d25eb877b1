// The gradient of a depthwise convolution's weight: one sweep over the images, channels innermost.
//
// grad_weight[c, i, j] = sum over n, p, q of grad[n, c, p, q] * x[n, c, p * stride - padding + i * dilation, ...]. Sums are
// taken in groups of images of fixed size, in double precision between groups: results do not depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr int64_t IMAGES = 4;  // whose sums are taken in single precision

// Outputs p for which input p * stride - padding + offset lies within 0 .. size - 1.
struct Range {
  int64_t first, last;
  Range(int64_t offset, int64_t stride, int64_t padding, int64_t size, int64_t outputs) {
    const int64_t shift = padding - offset;
    first = shift <= 0 ? 0 : (shift + stride - 1) / stride;
    last = size - 1 + shift < 0 ? -1 : std::min(outputs - 1, (size - 1 + shift) / stride);
  }
};

template <typename T>
void add_products(const T* grad, const T* x, T* sums, int64_t count, int64_t apart, int64_t channels) {
  for (int64_t q = 0; q < count; ++q) {
    const T *g = grad + q * channels, *in = x + q * apart;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sums[c] += g[c] * in[c];
  }
}

Tensor depthwise_weight_grad(const Tensor& upstream, const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation) {
  TORCH_CHECK(upstream.dim() == 4 && input.dim() == 4 && upstream.size(0) == input.size(0) &&
                  upstream.size(1) == input.size(1) && upstream.scalar_type() == input.scalar_type(),
              "depthwise_weight_grad: gradient ", upstream.sizes(), " and images ", input.sizes(), " do not belong together");
  const Tensor grad = upstream.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t images = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t rows = grad.size(2), columns = grad.size(3), taps = kernel[0] * kernel[1];
  const int64_t groups = (images + IMAGES - 1) / IMAGES;
  Tensor found = at::empty({channels, 1, kernel[0], kernel[1]}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "depthwise_weight_grad", [&] {
    std::vector<scalar_t> sums(groups * taps * channels, scalar_t(0));
    const scalar_t *up = grad.data_ptr<scalar_t>(), *in = x.data_ptr<scalar_t>();
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin * IMAGES; n < std::min(end * IMAGES, images); ++n)
        for (int64_t i = 0; i < kernel[0]; ++i) {
          const Range down(i * dilation[0], stride[0], padding[0], height, rows);
          for (int64_t p = down.first; p <= down.last; ++p) {
            const int64_t row = p * stride[0] - padding[0] + i * dilation[0];
            for (int64_t j = 0; j < kernel[1]; ++j) {
              const Range along(j * dilation[1], stride[1], padding[1], width, columns);
              const int64_t column = along.first * stride[1] - padding[1] + j * dilation[1];
              add_products(up + ((n * rows + p) * columns + along.first) * channels,
                           in + ((n * height + row) * width + column) * channels,
                           &sums[((n / IMAGES) * taps + i * kernel[1] + j) * channels], along.last - along.first + 1,
                           stride[1] * channels, channels);
            }
          }
        }
    });
    scalar_t* out = found.data_ptr<scalar_t>();
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t group = 0; group < groups; ++group) sum += sums[(group * taps + tap) * channels + c];
        out[c * taps + tap] = static_cast<scalar_t>(sum);
      }
  });
  return found;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dnas, m) {
  m.def(
      "depthwise_weight_grad(Tensor grad, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(dnas, CPU, m) { m.impl("depthwise_weight_grad", depthwise_weight_grad); }
