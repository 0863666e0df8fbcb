// A model's weights: declared first, then materialised in device memory. Replicas on a host may share all of it; ranks
// of one instance share what they have alike (common_weights.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"
#include "models/layers/common_weights.h"
#include "moe/deepep_mode.h"
#include "moe/expert_map.h"
#include "parallel/groups.h"
#include "tensor/stored_tensor.h"

namespace sluice::models {

// A weight matrix [out, in], packed for the backend's matrix products.
struct LinearWeight {
  kernels::LinearShape shape;
  size_t offset = 0;
};
// A small weight for each head, packed one after another.
struct HeadsWeight {
  kernels::LinearShape shape;  // whole
  size_t stride = 0;           // bytes from head to head
  size_t offset = 0;
};
// A weight for each expert, packed one after another.
struct ExpertsWeight {
  kernels::LinearShape shape;
  size_t stride = 0;  // bytes from expert to expert
  size_t offset = 0;
};
// float32 values, such as a norm's or a bias.
struct VectorWeight {
  int64_t size = 0;
  size_t offset = 0;
};
// Rows that are looked up: [rows, width] of dtype.
struct TableWeight {
  int64_t rows = 0;
  int64_t width = 0;
  kernels::DType dtype = kernels::DType::kF32;
  size_t offset = 0;
};

// A part of a stacked matrix or vector: rows [first, first + rows) of a tensor that has `of` of them.
struct Part {
  std::string name;
  int64_t rows = 0;
  int64_t first = 0;
  int64_t of = 0;  // 0: `rows`
};
inline Part part(std::string name, int64_t of, const parallel::Slice& range) {
  return {std::move(name), range.count, range.first, of};
}
// Columns [first, first + in) of a tensor that has `of` of them: the inputs that a rank computes.
struct Columns {
  int64_t first = 0;
  int64_t of = 0;  // 0: all are read
};

// Rows [first, first + rows) of heads [first_head, first_head + heads) of a tensor [of_heads * head_rows, in], or their
// transpose [in, rows].
struct HeadPart {
  std::string name;
  int64_t of_heads = 0;
  int64_t first_head = 0;
  int64_t heads = 0;
  int64_t head_rows = 0;
  int64_t first = 0;
  int64_t rows = 0;
  bool transposed = false;
};

class WeightStore {
 public:
  // `source`, where given, says how matrices are stored, and those whose blocks the backend keeps stay as they are.
  // `groups`, where given, say whose part of the model this is, `experts` where copies of experts are, and
  // `deepep` how tokens get there. `rounded`: inputs of quantised weights may be (kernels::LinearShape).
  WeightStore(const kernels::Backend& backend, kernels::DType dtype, const tensor::TensorSource* source = nullptr,
              const parallel::Groups* groups = nullptr, const moe::ExpertMap* experts = nullptr,
              const moe::DeepEpOptions& deepep = {}, bool rounded = false);
  ~WeightStore();
  WeightStore(const WeightStore&) = delete;
  WeightStore& operator=(const WeightStore&) = delete;

  const kernels::Backend& backend() const { return backend_; }
  // Arithmetic of matrix products.
  kernels::DType dtype() const { return dtype_; }
  // Null: of a rank that has the whole model.
  const parallel::Groups* groups() const { return groups_; }
  const parallel::Layout& layout() const { return layout_; }
  // Null: each expert is there once, in its order.
  const moe::ExpertMap* expert_map() const { return expert_map_; }
  const moe::DeepEpOptions& deepep() const { return deepep_; }
  bool rounded() const { return rounded_; }
  // Of a weight that was loaded as quantised as it is stored: the inputs may be.
  bool rounds_inputs() const { return rounds_inputs_; }

  // Declarations, before materialise(). Parts are stacked along the output, so that one product serves all of them.
  LinearWeight linear(std::vector<Part> parts, int64_t in, Columns columns = {});
  HeadsWeight heads(HeadPart part, int64_t in);
  // Each as linear() would have it, of experts [which.first, which.end()). `parts` is asked again whenever weights are
  // read, since experts may have moved by then; it says the same shapes.
  ExpertsWeight experts(parallel::Slice which, std::function<std::vector<Part>(int64_t expert)> parts, int64_t in,
                        Columns columns = {});
  // Room that holds nothing at first.
  size_t reserve(std::string name, size_t bytes);
  VectorWeight vector(std::vector<Part> parts);
  TableWeight table(Part part, int64_t width);
  // Values that are computed rather than stored in the checkpoint.
  VectorWeight constant(std::string name, std::vector<float> values);

  struct Loading {
    int fd = -1;       // memfd of the host's ranks; -1 = keep the weights to ourselves
    uint64_t key = 0;  // what the weights are; a memfd that holds something else is an error
    int threads = 1;   // that read and pack, the caller among them
  };
  // Before materialise(): finds out what the ranks of the instance have alike, for own_bytes() and to pack it once. A
  // call of all of them; nothing happens where they have no memory in common, or there is one rank.
  Result<void> find_common();

  // Reads, converts and packs everything, or maps what another rank packed. Errors name the tensor. `progress` gets a
  // share in 0..1. With find_common() all ranks return when all have packed; one that cannot fails all.
  Result<void> materialise(const tensor::TensorSource& source, const kernels::Context& context, Loading loading,
                           const std::function<void(double, std::string_view)>& progress);

  // Other values in the place of those that are there. `loading` as before, its key that of the new ones; the ranks
  // that share them compute nothing meanwhile, and until each has done so. After an error some may be new and some old.
  Result<void> refill(const tensor::TensorSource& source, const kernels::Context& context, Loading loading,
                      const std::function<void(double, std::string_view)>& progress);

  // Device addresses, after materialise().
  const void* address(const LinearWeight& weight) const { return at(weight.offset); }
  const void* address(const HeadsWeight& weight) const { return at(weight.offset); }
  const void* address(const ExpertsWeight& weight) const { return at(weight.offset); }
  const float* address(const VectorWeight& weight) const { return reinterpret_cast<const float*>(at(weight.offset)); }
  const void* address(const TableWeight& weight) const { return at(weight.offset); }

  // To be changed; only where no other rank shares the weights.
  char* writable(size_t offset) const;

  size_t bytes() const { return bytes_; }
  // This rank's part of the host's memory: of what n ranks have in common, one n-th.
  size_t own_bytes() const;
  // What was declared, in the order of declaration.
  struct Declared {
    std::string_view name;  // of the checkpoint's tensors
    int64_t values;         // this rank's
    size_t bytes;           // as the backend packs them
    WeightIdentity identity;
  };
  std::vector<Declared> declared() const;

 private:
  struct Entry {
    std::string name;
    int64_t values;
    size_t offset;
    size_t bytes;
    WeightIdentity identity;
    // Writes the packed form to host memory of `bytes`.
    std::function<Result<void>(const tensor::TensorSource&, void* to)> fill;
  };

  // `identity`: what sets it apart from all other weights of the model, or of another part, so that what is declared
  // again lies where it was declared first; empty: it is not shared.
  size_t declare(std::string name, int64_t values, size_t bytes, std::string_view identity,
                 std::function<Result<void>(const tensor::TensorSource&, void* to)> fill);
  char* at(size_t offset) const {
    if (places_.empty()) return base_ + offset;
    const auto next = std::ranges::upper_bound(places_, offset, {}, &Place::offset);
    return std::prev(next)->at + (offset - std::prev(next)->offset);
  }
  std::vector<WeightIdentity> identities() const;
  Result<void> take_block(size_t bytes);
  Result<void> place_all();
  // What is this rank's to pack, each to where `place` says.
  Result<void> fill_all(const tensor::TensorSource& source, int threads,
                        const std::function<char*(size_t offset)>& place,
                        const std::function<void(double, std::string_view)>& progress) const;
  Result<void> fill_device(const tensor::TensorSource& source, const kernels::Context& context, int threads,
                           const std::function<void(double, std::string_view)>& progress);
  Result<void> share(const tensor::TensorSource& source, Loading loading,
                     const std::function<void(double, std::string_view)>& progress);

  using Parts = std::function<std::vector<Part>()>;
  LinearWeight linear_stored(Parts parts, int64_t in, Columns columns, kernels::DType stored, bool stays);
  // The type that all parts are stored in if the backend keeps it, else kF32.
  kernels::DType kept_type(const std::vector<Part>& parts, int64_t in, Columns columns) const;

  const kernels::Backend& backend_;
  const kernels::DType dtype_;
  const tensor::TensorSource* const source_;
  const parallel::Groups* const groups_;
  const parallel::Layout layout_;
  const moe::ExpertMap* const expert_map_;
  const moe::DeepEpOptions deepep_;
  const bool rounded_;
  bool rounds_inputs_ = false;
  std::vector<Entry> entries_;
  std::map<std::pair<int64_t, int64_t>, size_t> known_;  // offsets by the hash and bytes of an identity
  size_t bytes_ = 0;
  size_t allocated_ = 0;  // at base_
  char* base_ = nullptr;
  CommonWeights common_;  // nothing where ranks have nothing in common
  std::shared_ptr<std::byte> common_memory_;
  // Where declarations from `offset` on are, ascending; none: all lie at base_ as declared.
  struct Place {
    size_t offset;
    char* at;
    bool common;
  };
  std::vector<Place> places_;
  size_t mapped_bytes_ = 0;  // of a shared mapping, else 0
  char* mapping_ = nullptr;
};

}  // namespace sluice::models
