#include "models/layers/weights.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/huge_pages.h"
#include "kernels/thread_pool.h"

namespace sluice::models {
namespace {

// A shared block begins with a page that says what is in it.
constexpr size_t kHeaderBytes = 4096;
constexpr uint64_t kReady = 0x31304b504c53ULL;  // "SLPK01"
// Reading and packing the largest models takes minutes; a rank that waits longer for another one has lost it.
constexpr std::chrono::minutes kShareLimit{30};

struct Header {
  uint64_t ready;
  uint64_t key;
  uint64_t bytes;
};

Error shared_error(std::string_view what) {
  return {ErrorCode::kExhausted, fmt::format("shared weights: cannot {}: {}", what, std::strerror(errno))};
}

size_t stored_row_bytes(kernels::DType type, int64_t width) {
  if (type == kernels::DType::kF8E4M3) return kernels::scaled_row_bytes(width);
  return tensor::bytes_of(type, static_cast<size_t>(width));
}

// What a part names, of the shape that it should have in the checkpoint.
Result<tensor::StoredTensor> find_part(const tensor::TensorSource& source, const Part& part, int64_t in,
                                       const Columns& columns = {}) {
  SLUICE_TRY(tensor::StoredTensor stored,
             source.find_shaped(part.name, {part.of == 0 ? part.rows : part.of, columns.of == 0 ? in : columns.of}));
  stored = stored.rows(part.first, part.rows);
  if (columns.of == 0) return stored;
  return stored.columns(columns.first, in);
}

// Rows of a matrix in e4m3 as kernels take them, each with the scales of its blocks.
void read_scaled_rows(const tensor::StoredTensor& stored, int64_t first, int64_t count, char* to) {
  const int64_t width = stored.row_elements();
  const int64_t scales = kernels::scales_per_row(width);
  for (int64_t row = first; row < first + count; ++row, to += kernels::scaled_row_bytes(width)) {
    for (int64_t i = 0; i < scales; ++i) {
      const float scale = stored.scales->at(row, i * kernels::kScaledValues);
      std::memcpy(to + 4 * i, &scale, 4);
    }
    std::memcpy(to + 4 * scales, stored.row(row), static_cast<size_t>(width));
  }
}

// The rows of stacked parts, whatever part they lie in, each of `width` values of `type`: float32, or as they are
// stored.
Result<void> read_stacked(const tensor::TensorSource& source, const std::vector<Part>& parts, int64_t width,
                          const Columns& columns, kernels::DType type, int64_t first, int64_t count, void* to) {
  const size_t row_bytes = stored_row_bytes(type, width);
  int64_t begin = 0;
  for (const Part& part : parts) {
    const int64_t from = std::max(first, begin);
    const int64_t until = std::min(first + count, begin + part.rows);
    if (from < until) {
      SLUICE_TRY(const tensor::StoredTensor stored, find_part(source, part, width, columns));
      char* at = static_cast<char*>(to) + static_cast<size_t>(from - first) * row_bytes;
      if (type == kernels::DType::kF32) {
        stored.read_rows(from - begin, until - from, reinterpret_cast<float*>(at));
      } else if (type == kernels::DType::kF8E4M3) {
        read_scaled_rows(stored, from - begin, until - from, at);
      } else {
        for (int64_t row = from; row < until; ++row, at += row_bytes) {
          std::memcpy(at, stored.row(row - begin), row_bytes);
        }
      }
    }
    begin += part.rows;
  }
  return {};
}

// A NaN in e4m3 would be multiplied as 480; no checkpoint has one that is not damaged.
Result<void> check_no_nan(const tensor::StoredTensor& tensor) {
  const auto nan = [](std::byte value) { return (value & std::byte{0x7f}) == std::byte{0x7f}; };
  for (int64_t i = 0; i < tensor.shape[0]; ++i) {
    const std::byte* row = tensor.row(i);
    const std::byte* end = row + tensor.row_bytes();
    if (const auto* at = std::find_if(row, end, nan); at != end) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("tensor {}: value [{}, {}] is not a number", tensor.name, i, at - row)};
    }
  }
  return {};
}

Error stored_otherwise(const Part& part, kernels::DType found, kernels::DType declared) {
  return {ErrorCode::kInvalidArgument, fmt::format("tensor '{}' is stored as {}, not as {}", part.name,
                                                   tensor::to_string(found), tensor::to_string(declared))};
}

// That a part is there, as it was declared.
Result<void> check_part(const tensor::TensorSource& source, const Part& part, const kernels::LinearShape& shape,
                        const Columns& columns) {
  SLUICE_TRY(const auto found, find_part(source, part, shape.in, columns));
  if (shape.stored != kernels::DType::kF32 && found.dtype != shape.stored) {
    return stored_otherwise(part, found.dtype, shape.stored);
  }
  if (shape.stored == kernels::DType::kF8E4M3) return check_no_nan(found);
  return {};
}

// For their identity.
std::string text_of(const std::vector<Part>& parts) {
  std::string text;
  for (const Part& part : parts) text += fmt::format("{}[{}+{} of {}]", part.name, part.first, part.rows, part.of);
  return text;
}

std::string joined_names(const std::vector<Part>& parts) {
  std::string names;
  for (const Part& part : parts) names += (names.empty() ? "" : "+") + part.name;
  return names;
}

}  // namespace

WeightStore::WeightStore(const kernels::Backend& backend, kernels::DType dtype, const tensor::TensorSource* source,
                         const parallel::Groups* groups, const moe::ExpertMap* experts,
                         const moe::DeepEpOptions& deepep, bool rounded)
    : backend_(backend),
      dtype_(dtype),
      source_(source),
      groups_(groups),
      layout_(groups == nullptr ? parallel::Layout{} : groups->layout),
      expert_map_(experts),
      deepep_(deepep),
      rounded_(rounded) {}

WeightStore::~WeightStore() {
  if (mapping_ != nullptr) {
    ::munmap(mapping_, mapped_bytes_);
  } else if (base_ != nullptr) {
    backend_.release(base_, allocated_);
  }
}

size_t WeightStore::declare(std::string name, int64_t values, size_t bytes, std::string_view identity,
                            std::function<Result<void>(const tensor::TensorSource&, void* to)> fill) {
  SLUICE_CHECK(base_ == nullptr, "{} is declared after the weights were materialised", name);
  const size_t offset = bytes_;
  WeightIdentity who{.bytes = static_cast<int64_t>(bytes)};
  if (!identity.empty()) {
    // Never 0, which stands for nothing that could be shared.
    who.hash = static_cast<int64_t>(XXH64(identity.data(), identity.size(), 0) | 1);
    const auto [at, first] = known_.try_emplace({who.hash, who.bytes}, offset);
    if (!first) return at->second;
  }
  entries_.push_back({std::move(name), values, offset, bytes, who, std::move(fill)});
  bytes_ += aligned(bytes);
  return offset;
}

kernels::DType WeightStore::kept_type(const std::vector<Part>& parts, int64_t in, Columns columns) const {
  if (source_ == nullptr) return kernels::DType::kF32;
  std::optional<kernels::DType> type;
  for (const Part& part : parts) {
    // A missing or misshapen part is reported when it is read.
    const auto found = find_part(*source_, part, in, columns);
    if (!found.ok() || type.value_or(found->dtype) != found->dtype ||
        !backend_.keeps({.in = in, .dtype = dtype_, .stored = found->dtype, .rounded = rounded_})) {
      return kernels::DType::kF32;
    }
    // Kernels take a scale for every kScaledValues from the first column on.
    if (found->scales && (found->scales->columns != kernels::kScaledValues ||
                          found->scales->first_column % kernels::kScaledValues != 0)) {
      return kernels::DType::kF32;
    }
    type = found->dtype;
  }
  return type.value_or(kernels::DType::kF32);
}

LinearWeight WeightStore::linear(std::vector<Part> parts, int64_t in, Columns columns) {
  const kernels::DType stored = kept_type(parts, in, columns);
  return linear_stored([parts = std::move(parts)] { return parts; }, in, columns, stored, /*stays=*/true);
}

LinearWeight WeightStore::linear_stored(Parts parts_now, int64_t in, Columns columns, kernels::DType stored,
                                        bool stays) {
  const std::vector<Part> parts = parts_now();
  LinearWeight weight;
  weight.shape = {.in = in, .out = 0, .dtype = dtype_};
  for (const Part& part : parts) weight.shape.out += part.rows;
  weight.shape.stored = stored;
  weight.shape.rounded = rounded_ && stored != kernels::DType::kF32;
  rounds_inputs_ = rounds_inputs_ || (weight.shape.rounded && tensor::block_elements(stored) > 1);
  const kernels::LinearShape shape = weight.shape;
  std::string name = joined_names(parts);
  const auto fill = [this, shape, columns, parts_now = std::move(parts_now)](const tensor::TensorSource& source,
                                                                             void* to) -> Result<void> {
    const std::vector<Part> now = parts_now();
    for (const Part& part : now) SLUICE_TRY_VOID(check_part(source, part, shape, columns));
    // Every part is there with its shape, so reading cannot fail any more.
    const bool in_bf16 = shape.dtype == kernels::DType::kBf16 && shape.stored == kernels::DType::kF32 &&
                         std::ranges::all_of(now, [&](const Part& part) {
                           return find_part(source, part, shape.in, columns)->dtype == kernels::DType::kBf16;
                         });
    const kernels::DType type = in_bf16 ? kernels::DType::kBf16 : shape.stored;
    const auto read_rows = [&](int64_t first, int64_t count, void* rows) {
      const auto read = read_stacked(source, now, shape.in, columns, type, first, count, rows);
      SLUICE_CHECK(read.ok(), "a checked tensor cannot be read: {}", read.error().message);
    };
    backend_.pack(shape, {read_rows, in_bf16}, to);
    return {};
  };
  std::string identity;
  if (stays) {
    identity = fmt::format("linear {} {}/{} {} {} {} {}", text_of(parts), columns.first, columns.of, in,
                           static_cast<int>(dtype_), static_cast<int>(stored), weight.shape.rounded);
  }
  weight.offset = declare(std::move(name), shape.in * shape.out, backend_.packed_bytes(shape), identity, fill);
  return weight;
}

HeadsWeight WeightStore::heads(HeadPart part, int64_t in) {
  HeadsWeight weight;
  weight.shape = {
      .in = part.transposed ? part.rows : in, .out = part.transposed ? in : part.rows, .dtype = dtype_, .whole = true};
  weight.stride = aligned(backend_.packed_bytes(weight.shape));
  const auto fill = [this, part, in, weight](const tensor::TensorSource& source, void* to) -> Result<void> {
    SLUICE_TRY(const auto stored, source.find_shaped(part.name, {part.of_heads * part.head_rows, in}));
    std::vector<float> rows(static_cast<size_t>(part.rows * in));  // of one head
    for (int64_t head = 0; head < part.heads; ++head) {
      stored.read_rows((part.first_head + head) * part.head_rows + part.first, part.rows, rows.data());
      const auto read = [&](int64_t first, int64_t count, void* out) {
        auto* values = static_cast<float*>(out);
        if (!part.transposed) {
          std::copy_n(rows.data() + first * in, count * in, values);
          return;
        }
        for (int64_t i = first; i < first + count; ++i) {
          for (int64_t j = 0; j < part.rows; ++j) *values++ = rows[static_cast<size_t>(j * in + i)];
        }
      };
      backend_.pack(weight.shape, read, static_cast<char*>(to) + static_cast<size_t>(head) * weight.stride);
    }
    return {};
  };
  std::string name = fmt::format("{}, rows {} to {} of each head", part.name, part.first, part.first + part.rows);
  const std::string identity = fmt::format("heads {} {} {} {} {} {} {}", name, part.of_heads, part.first_head,
                                           part.heads, part.head_rows, part.transposed, static_cast<int>(dtype_));
  weight.offset = declare(std::move(name), part.heads * part.rows * in, weight.stride * static_cast<size_t>(part.heads),
                          identity, fill);
  return weight;
}

ExpertsWeight WeightStore::experts(parallel::Slice which, std::function<std::vector<Part>(int64_t expert)> parts,
                                   int64_t in, Columns columns) {
  // One product serves all, so they are kept as stored only if all are stored alike.
  kernels::DType stored = kept_type(parts(which.first), in, columns);
  for (int64_t expert = which.first + 1; expert < which.end(); ++expert) {
    if (kept_type(parts(expert), in, columns) != stored) stored = kernels::DType::kF32;
  }
  const auto declare_one = [&](int64_t expert) {
    return linear_stored([parts, expert] { return parts(expert); }, in, columns, stored, /*stays=*/false);
  };
  const LinearWeight first = declare_one(which.first);
  const ExpertsWeight weight{.shape = first.shape, .stride = bytes_ - first.offset, .offset = first.offset};
  for (int64_t expert = which.first + 1; expert < which.end(); ++expert) declare_one(expert);
  return weight;
}

size_t WeightStore::reserve(std::string name, size_t bytes) {
  return declare(std::move(name), 0, bytes, "", [](const tensor::TensorSource&, void*) -> Result<void> { return {}; });
}

char* WeightStore::writable(size_t offset) const {
  SLUICE_CHECK(base_ != nullptr && mapping_ == nullptr, "weights at {} are shared, or not there yet", offset);
  if (!places_.empty()) {
    SLUICE_CHECK(!std::prev(std::ranges::upper_bound(places_, offset, {}, &Place::offset))->common,
                 "weights at {} are shared", offset);
  }
  return at(offset);
}

VectorWeight WeightStore::vector(std::vector<Part> parts) {
  VectorWeight weight;
  for (const Part& part : parts) weight.size += part.rows;
  std::string name = joined_names(parts);
  const std::string identity = "vector " + text_of(parts);
  weight.offset =
      declare(std::move(name), weight.size, static_cast<size_t>(weight.size) * sizeof(float), identity,
              [parts = std::move(parts)](const tensor::TensorSource& source, void* to) -> Result<void> {
                auto* values = static_cast<float*>(to);
                for (const Part& part : parts) {
                  SLUICE_TRY(const auto stored, source.find_shaped(part.name, {part.of == 0 ? part.rows : part.of}));
                  stored.read_rows(part.first, part.rows, values);
                  values += part.rows;
                }
                return {};
              });
  return weight;
}

TableWeight WeightStore::table(Part part, int64_t width) {
  TableWeight weight{.rows = part.rows, .width = width, .dtype = dtype_};
  // Rows are looked up, not multiplied: those in blocks are widened then.
  if (source_ != nullptr) {
    const auto found = find_part(*source_, part, width);
    if (found.ok() && tensor::block_elements(found->dtype) > 1) weight.dtype = found->dtype;
  }
  std::string name = part.name;
  const std::string identity = fmt::format("table {} {} {}", text_of({part}), width, static_cast<int>(weight.dtype));
  const auto fill = [part = std::move(part), width, dtype = weight.dtype](const tensor::TensorSource& source,
                                                                          void* to) -> Result<void> {
    SLUICE_TRY(const auto stored, find_part(source, part, width));
    if (tensor::block_elements(dtype) > 1) {
      if (stored.dtype != dtype) return stored_otherwise(part, stored.dtype, dtype);
      auto* out = static_cast<char*>(to);
      for (int64_t i = 0; i < part.rows; ++i, out += stored.row_bytes()) {
        std::memcpy(out, stored.row(i), stored.row_bytes());
      }
      return {};
    }
    if (dtype == kernels::DType::kF32) {
      stored.read_rows(0, part.rows, static_cast<float*>(to));
      return {};
    }
    std::vector<float> row(static_cast<size_t>(width));
    auto* out = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < part.rows; ++i) {
      stored.read_rows(i, 1, row.data());
      for (const float value : row) *out++ = tensor::float_to_bf16(value);
    }
    return {};
  };
  weight.offset = declare(std::move(name), weight.rows * width,
                          static_cast<size_t>(weight.rows) * tensor::bytes_of(weight.dtype, static_cast<size_t>(width)),
                          identity, fill);
  return weight;
}

VectorWeight WeightStore::constant(std::string name, std::vector<float> values) {
  VectorWeight weight{.size = static_cast<int64_t>(values.size())};
  const size_t bytes = values.size() * sizeof(float);
  const std::string identity =
      fmt::format("constant {} {}", name, XXH64(values.data(), values.size() * sizeof(float), 0));
  weight.offset = declare(std::move(name), weight.size, bytes, identity,
                          [values = std::move(values)](const tensor::TensorSource&, void* to) -> Result<void> {
                            std::memcpy(to, values.data(), values.size() * sizeof(float));
                            return {};
                          });
  return weight;
}

std::vector<WeightStore::Declared> WeightStore::declared() const {
  std::vector<Declared> all;
  for (const Entry& entry : entries_) all.push_back({entry.name, entry.values, entry.bytes, entry.identity});
  return all;
}

Result<void> WeightStore::fill_all(const tensor::TensorSource& source, int threads,
                                   const std::function<char*(size_t offset)>& place,
                                   const std::function<void(double, std::string_view)>& progress) const {
  std::atomic<size_t> done{0};
  std::mutex mu;
  std::atomic<int64_t> failed{std::ssize(entries_)};  // the first in the order of declaration
  Result<void> all;
  kernels::ThreadPool pool(threads);
  pool.parallel_for(std::ssize(entries_), [&](int64_t i, int thread) {
    if (i > failed) return;
    const Entry& entry = entries_[static_cast<size_t>(i)];
    const auto& common = common_.entries;
    const bool others = !common.empty() && common[static_cast<size_t>(i)] && !common[static_cast<size_t>(i)]->own;
    if (!others) {
      if (auto filled = entry.fill(source, place(entry.offset)); !filled.ok()) {
        const std::lock_guard lock(mu);
        if (i > failed) return;
        failed = i;
        all = std::move(filled);
        return;
      }
    }
    done += entry.bytes;
    if (others || thread > 0 || !progress) return;
    progress(static_cast<double>(done) / static_cast<double>(std::max<size_t>(bytes_, 1)), "packing weights");
  });
  return all;
}

std::vector<WeightIdentity> WeightStore::identities() const {
  std::vector<WeightIdentity> all;
  for (const Entry& entry : entries_) all.push_back(entry.identity);
  return all;
}

Result<void> WeightStore::find_common() {
  if (groups_ == nullptr || groups_->all == nullptr || groups_->all->size() == 1 || !backend_.host_visible()) return {};
  parallel::Communicator& all = *groups_->all;
  const std::vector<WeightIdentity> own = identities();
  constexpr int64_t kWords = sizeof(WeightIdentity) / sizeof(int64_t);
  const int64_t count = std::ssize(own) * kWords;
  std::vector<int64_t> counts(static_cast<size_t>(all.size()));
  SLUICE_TRY_VOID(all.all_gather({}, parallel::Element::kI64, &count, counts.data(), 1));
  std::vector<WeightIdentity> gathered(
      static_cast<size_t>(std::accumulate(counts.begin(), counts.end(), int64_t{0}) / kWords));
  SLUICE_TRY_VOID(all.all_gather_v({}, parallel::Element::kI64, own.data(), gathered.data(), counts));
  std::vector<std::vector<WeightIdentity>> declared;
  auto next = gathered.begin();
  for (const int64_t words : counts) {
    declared.emplace_back(next, next + words / kWords);
    next += words / kWords;
  }
  CommonWeights common = models::find_common(declared, static_cast<size_t>(all.rank()));
  if (common.bytes == 0) return {};
  SLUICE_TRY(common_memory_, all.common_memory(common.bytes));
  if (common_memory_) common_ = std::move(common);
  return {};
}

size_t WeightStore::own_bytes() const {
  if (common_.entries.empty()) return bytes_;
  return static_cast<size_t>(proportional_bytes(identities(), common_));
}

Result<void> WeightStore::take_block(size_t bytes) {
  SLUICE_TRY(void* memory, backend_.allocate(bytes));
  base_ = static_cast<char*>(memory);
  allocated_ = bytes;
  if (backend_.host_visible()) prefer_huge_pages(memory, bytes);
  return {};
}

// What ranks have in common lies in their memory, all else in a block of this rank's.
Result<void> WeightStore::place_all() {
  size_t own = 0;
  for (size_t i = 0; i < entries_.size(); ++i) own += common_.entries[i] ? 0 : aligned(entries_[i].bytes);
  SLUICE_TRY_VOID(take_block(own));
  char* next = base_;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const auto& place = common_.entries[i];
    char* const at = place ? reinterpret_cast<char*>(common_memory_.get()) + place->offset : next;
    if (!place) next += aligned(entry.bytes);
    // What goes on where the one before it ends needs no line of its own: experts, which are addressed from their
    // first, are such.
    const bool goes_on = !places_.empty() && places_.back().common == place.has_value() &&
                         places_.back().at + (entry.offset - places_.back().offset) == at;
    if (!goes_on) places_.push_back({entry.offset, at, place.has_value()});
  }
  return {};
}

Result<void> WeightStore::materialise(const tensor::TensorSource& source, const kernels::Context& context,
                                      Loading loading, const std::function<void(double, std::string_view)>& progress) {
  if (loading.fd >= 0 && backend_.host_visible()) return share(source, loading, progress);
  if (common_memory_) {
    auto filled = place_all();
    if (filled.ok()) filled = fill_device(source, context, loading.threads, progress);
    // The others wait for what this rank packs.
    if (!filled.ok()) groups_->all->abort(filled.error().message);
    SLUICE_TRY_VOID(filled);
    return groups_->all->barrier();
  }
  SLUICE_TRY_VOID(take_block(bytes_));
  return fill_device(source, context, loading.threads, progress);
}

Result<void> WeightStore::fill_device(const tensor::TensorSource& source, const kernels::Context& context, int threads,
                                      const std::function<void(double, std::string_view)>& progress) {
  if (backend_.host_visible())
    return fill_all(
        source, threads, [this](size_t offset) { return at(offset); }, progress);
  std::vector<char> staged(bytes_);
  SLUICE_TRY_VOID(fill_all(
      source, threads, [&](size_t offset) { return staged.data() + offset; }, progress));
  backend_.copy_to_device(context, base_, staged.data(), bytes_);
  backend_.synchronize(context);
  return {};
}

namespace {

// The host's memory, locked while this lives. The kernel drops the lock of a rank that dies.
class SharedLock {
 public:
  SharedLock() = default;
  SharedLock(const SharedLock&) = delete;
  SharedLock& operator=(const SharedLock&) = delete;
  // Unlocked by name: a mapping keeps the open file, and with it the lock, alive after close().
  ~SharedLock() {
    if (fd_ < 0) return;
    ::flock(fd_, LOCK_UN);
    ::close(fd_);
  }

  Result<void> take(int shared_fd, const std::function<void(double, std::string_view)>& progress) {
    // Opened anew: a lock belongs to an open file, and the inherited one is the same for every rank.
    fd_ = ::open(fmt::format("/proc/self/fd/{}", shared_fd).c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) return shared_error("open the memory of the host's ranks");
    const auto deadline = std::chrono::steady_clock::now() + kShareLimit;
    while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) return shared_error("lock");
      if (std::chrono::steady_clock::now() > deadline) {
        return Error{ErrorCode::kTimeout, fmt::format("shared weights: waited {} minutes for another rank to pack them",
                                                      kShareLimit.count())};
      }
      if (progress) progress(0, "waiting for another rank to pack the weights");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return {};
  }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

}  // namespace

Result<void> WeightStore::refill(const tensor::TensorSource& source, const kernels::Context& context, Loading loading,
                                 const std::function<void(double, std::string_view)>& progress) {
  if (mapping_ == nullptr) return fill_device(source, context, loading.threads, progress);
  SharedLock lock;
  SLUICE_TRY_VOID(lock.take(loading.fd, progress));
  Header header{};
  if (::pread(lock.fd(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) {
    return shared_error("read its header");
  }
  if (header.ready == kReady && header.key == loading.key) return {};  // another rank was first
  header.ready = 0;
  void* memory = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, lock.fd(), 0);
  if (memory == MAP_FAILED) return shared_error("map it");
  Result<void> filled;
  if (::pwrite(lock.fd(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) {
    filled = shared_error("mark it unfinished");
  } else if (filled = fill_all(
                 source, loading.threads,
                 [&](size_t offset) { return static_cast<char*>(memory) + kHeaderBytes + offset; }, progress);
             filled.ok()) {
    header = {kReady, loading.key, bytes_};
    if (::pwrite(lock.fd(), &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) {
      filled = shared_error("mark it ready");
    }
  }
  ::munmap(memory, mapped_bytes_);
  return filled;
}

// The first rank that gets the lock packs; the others find the block ready. The kernel drops the lock of a rank that
// dies, and the next one then packs anew.
Result<void> WeightStore::share(const tensor::TensorSource& source, Loading loading,
                                const std::function<void(double, std::string_view)>& progress) {
  SharedLock lock;
  SLUICE_TRY_VOID(lock.take(loading.fd, progress));
  const int fd = lock.fd();
  const size_t total = kHeaderBytes + bytes_;
  struct stat status {};
  if (::fstat(fd, &status) != 0) return shared_error("look at its size");
  Header header{};
  if (static_cast<size_t>(status.st_size) >= sizeof(Header) &&
      ::pread(fd, &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header))) {
    return shared_error("read its header");
  }
  if (header.ready == kReady && (header.key != loading.key || header.bytes != bytes_)) {
    return Error{ErrorCode::kInvalidArgument, "shared weights: the memory holds the weights of another model"};
  }
  if (header.ready != kReady) {
    if (::ftruncate(fd, static_cast<off_t>(total)) != 0) return shared_error(fmt::format("take {} bytes", total));
    void* memory = ::mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) return shared_error("map it");
    const auto filled = fill_all(
        source, loading.threads, [&](size_t offset) { return static_cast<char*>(memory) + kHeaderBytes + offset; },
        progress);
    ::munmap(memory, total);
    if (!filled.ok()) return filled.error();
    header = {kReady, loading.key, bytes_};
    if (::pwrite(fd, &header, sizeof(header), 0) != static_cast<ssize_t>(sizeof(header)))
      return shared_error("mark it ready");
  }
  void* memory = ::mmap(nullptr, total, PROT_READ, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return shared_error("map it");
  mapping_ = static_cast<char*>(memory);
  mapped_bytes_ = total;
  base_ = mapping_ + kHeaderBytes;
  return {};
}

}  // namespace sluice::models
