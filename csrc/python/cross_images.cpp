#include "functions.h"

#include "../cross_scan/cross_scan.h"

namespace vmddpm {

namespace {

constexpr int64_t kRoutes = 4;
constexpr int64_t kMostPixels = int64_t{1} << 31;  // as in vmddpm_kernels/routes.py

// The layout of one side of a copy: (B, 4, C, pixels) or (B, pixels, 4, C), with or without the axis of routes.
struct Side {
  bool channel_first, per_route, pixels_on_one_axis;

  size_t axes() const { return (per_route ? 4u : 3u) + (pixels_on_one_axis ? 0u : 1u); }
  size_t route_axis() const { return channel_first ? 1 : axes() - 2; }
  size_t channel_axis() const { return channel_first ? (per_route ? 2 : 1) : axes() - 1; }
  size_t pixel_axis() const { return channel_first ? channel_axis() + 1 : 1; }  // the first one
};

struct Sizes {
  int64_t batch, channels, height, width;
  int64_t length() const { return height * width; }
};

bool is_flag(const py::handle& value) { return PyBool_Check(value.ptr()); }

// Whether the shape fits the layout and the number of pixels fits int32. Reads the sizes from it.
bool read_shape(const py::tuple& shape, const Side& side, Sizes& sizes) {
  if (shape.size() != side.axes()) return false;
  if (side.per_route && int64_at(shape, side.route_axis()) != kRoutes) return false;
  sizes.batch = int64_at(shape, 0);
  sizes.channels = int64_at(shape, side.channel_axis());
  const int64_t first = int64_at(shape, side.pixel_axis());
  if (!side.pixels_on_one_axis) {
    sizes.height = first;
    sizes.width = int64_at(shape, side.pixel_axis() + 1);
  }
  if (sizes.height < 1 || sizes.width < 1 || sizes.height > (kMostPixels - 1) / sizes.width) return false;
  return !side.pixels_on_one_axis || first == sizes.length();
}

// Reads the tensor as a view (B, K, L, C); returns false if its pixels are not equally spaced.
bool read_view(const py::handle& tensor, const Side& side, const Sizes& sizes, View& v) {
  const py::tuple strides = call(tensor, names.stride);
  v.stride[0] = int64_at(strides, 0);
  v.stride[1] = side.per_route ? int64_at(strides, side.route_axis()) : 0;
  v.stride[2] = int64_at(strides, side.pixel_axis());
  v.stride[3] = int64_at(strides, side.channel_axis());
  if (side.pixels_on_one_axis) return true;
  const int64_t row = v.stride[2], pixel = int64_at(strides, side.pixel_axis() + 1);
  if (sizes.width > 1) v.stride[2] = pixel;
  return sizes.width == 1 || sizes.height == 1 || row == sizes.width * pixel;
}

py::tuple shape_of(const Side& side, const Sizes& sizes) {
  py::tuple shape(side.axes());
  const auto set = [&](size_t axis, int64_t size) { shape[axis] = py::int_(size); };
  set(0, sizes.batch);
  if (side.per_route) set(side.route_axis(), kRoutes);
  set(side.channel_axis(), sizes.channels);
  set(side.pixel_axis(), side.pixels_on_one_axis ? sizes.length() : sizes.height);
  if (!side.pixels_on_one_axis) set(side.pixel_axis() + 1, sizes.width);
  return shape;
}

// The strides of a contiguous tensor.
void contiguous_strides(const Side& side, const Sizes& sizes, View& v) {
  const int64_t length = sizes.length(), channels = sizes.channels, routes = side.per_route ? kRoutes : 1;
  v.stride[0] = routes * length * channels;
  v.stride[1] = !side.per_route ? 0 : side.channel_first ? length * channels : channels;
  v.stride[2] = side.channel_first ? 1 : routes * channels;
  v.stride[3] = side.channel_first ? length : 1;
}

py::object copied(const py::handle& tensor, Sizes sizes, const Side& from, const Side& to, int64_t scans, bool merge,
                  int threads) {
  View source, result;
  if (!is_dense(tensor) || !to_bool(attribute_of(tensor, names.is_cpu)) || !read_dtype(tensor, source.dtype)) return py::none();
  if (!read_shape(attribute_of(tensor, names.shape), from, sizes) || !read_view(tensor, from, sizes, source)) return py::none();
  source.data = pointer(tensor);
  check_view_storage(source, tensor, {sizes.batch, from.per_route ? kRoutes : 1, sizes.length(), sizes.channels});
  py::object out = call(tensor, names.new_empty, shape_of(to, sizes));
  result.data = pointer(out);
  result.dtype = source.dtype;
  contiguous_strides(to, sizes, result);
  const CrossScanParams p{sizes.batch, kRoutes, sizes.length(), sizes.channels, nullptr, merge ? result : source,
                    merge ? source : result, merge && !to.per_route, threads, sizes.height, sizes.width,
                    static_cast<int32_t>(scans)};
  {
    const py::gil_scoped_release release;
    if (merge) {
      cross_merge_cpu(p);
    } else {
      cross_scan_cpu(p);
    }
  }
  return out;
}

}  // namespace

py::object cross_image(const py::handle& tensor, int64_t height, int64_t width, const py::handle& in_channel_first,
                       const py::handle& out_channel_first, const py::handle& one_by_one, const py::handle& scans,
                       bool merge, int threads) {
  if (!is_flag(in_channel_first) || !is_flag(out_channel_first) || !is_flag(one_by_one)) return py::none();
  if (!PyLong_CheckExact(scans.ptr())) return py::none();
  const bool pixels_on_one_axis = height > 0;
  try {
    const int64_t code = to_int64(scans);
    if (code < 0 || code > 3) return py::none();
    const Side image{to_bool(in_channel_first), to_bool(one_by_one), merge != pixels_on_one_axis};
    const Side sequences{to_bool(out_channel_first), true, merge == pixels_on_one_axis};
    return merge ? copied(tensor, {0, 0, height, width}, sequences, image, code, true, threads)
                 : copied(tensor, {0, 0, height, width}, image, sequences, code, false, threads);
  } catch (const py::error_already_set&) {
    return py::none();  // a tensor without these attributes, or an integer out of range
  }
}

}  // namespace vmddpm
