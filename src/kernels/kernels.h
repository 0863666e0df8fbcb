// Kernels, behind one table per device. Everything above this folder calls them through a Context and holds device
// memory only as pointers that it never follows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sluice::kernels {

using tensor::DType;

// An ordered queue of work on a device. The CPU does each piece at once; the sim device queues it.
class Stream {
 public:
  virtual ~Stream() = default;
};

class Backend;

// Goes to every kernel call. Cheap to copy.
struct Context {
  const Backend* backend = nullptr;  // the device and its function table
  Stream* stream = nullptr;
};

// Arithmetic of a model: what activations and weights of matrix products and the KV cache are stored as. Sums, norms,
// softmax and the residual stream are float32 in either case.
//   kF32, kBf16

// y = x W^T for a weight [out, in], packed by the backend for its matrix units.
struct LinearShape {
  int64_t in = 0;
  int64_t out = 0;
  DType dtype = DType::kF32;
  // kF32, or a type that the backend keeps as it is (keeps()): the values are then those of its blocks.
  DType stored = DType::kF32;
  // One of many small weights: packed in one piece, which one thread multiplies.
  bool whole = false;
  // Of quantised weights: where it is faster, inputs may be rounded to eight bits, each block of 32 with a scale of its
  // own. A value then moves by at most a 254th of the largest of its block.
  bool rounded = false;
  bool operator==(const LinearShape&) const = default;
};
// Values of kF8E4M3 have a scale for each kScaledValues that follow each other in a row (fewer at its end).
constexpr int64_t kScaledValues = 128;
constexpr int64_t scales_per_row(int64_t in) { return (in + kScaledValues - 1) / kScaledValues; }
// A row of them: its float32 scales, then its values, and nothing up to a multiple of four bytes.
constexpr size_t scaled_row_bytes(int64_t in) { return static_cast<size_t>(4 * (scales_per_row(in) + (in + 3) / 4)); }

// Of a weight: fills `to` with rows first .. first + count, each of `in` values of shape.stored; of bf16 if `in_bf16`,
// where shape.stored is kF32 and shape.dtype kBf16.
class RowReader {
 public:
  using Read = std::function<void(int64_t first, int64_t count, void* to)>;
  template <class Body>
  requires std::is_constructible_v<Read, Body> RowReader(Body body, bool in_bf16 = false)
      : in_bf16(in_bf16), read_(std::move(body)) {}  // NOLINT(*-explicit-*)
  void operator()(int64_t first, int64_t count, void* to) const { read_(first, count, to); }

  const bool in_bf16;

 private:
  Read read_;
};

struct LinearArgs {
  const LinearShape* shape = nullptr;
  const void* weight = nullptr;  // packed
  const void* in = nullptr;      // [n, in] of shape->dtype
  float* out = nullptr;          // [n, out]
  int64_t n = 0;
  const float* bias = nullptr;  // [out]; null = none
  bool accumulate = false;      // out += instead of out =
};
// A product of each head by itself, out[i, h] = W_h in[i, h]: n_heads weights of one shape, each packed for itself.
struct HeadLinearArgs {
  const LinearShape* shape = nullptr;  // whole
  const void* weights = nullptr;       // [n_heads] packed, weight_stride bytes apart
  size_t weight_stride = 0;
  const float* in = nullptr;  // [n, n_heads, shape->in]; rounded to shape->dtype for the product
  int64_t in_stride = 0;      // from row to row
  int64_t in_head_stride = 0;
  void* out = nullptr;  // [n, n_heads, shape->out] of out_dtype, contiguous
  DType out_dtype = DType::kF32;
  int64_t n = 0;
  int64_t n_heads = 0;
};
struct EmbedArgs {
  // [rows, width] of dtype, which may be one that stores blocks: ids first .. first + rows of the vocabulary.
  const void* table = nullptr;
  DType dtype = DType::kF32;
  int64_t first = 0;
  int64_t rows = 0;
  const int32_t* ids = nullptr;  // [n]; one that is not in the table gives zeros
  float* out = nullptr;          // [n, width]
  int64_t n = 0;
  int64_t width = 0;
};
// RMSNorm (Zhang and Sennrich 2019) of each group of `width` values; a row has `groups` of them.
struct RmsNormArgs {
  const float* in = nullptr;      // [n, groups, width], rows in_stride apart
  const float* weight = nullptr;  // [width]
  void* out = nullptr;            // [n, groups, width] of out_dtype, rows out_stride apart; may be `in`
  DType out_dtype = DType::kF32;
  int64_t n = 0;
  int64_t groups = 1;
  int64_t width = 0;
  int64_t in_stride = 0;
  int64_t out_stride = 0;
  float epsilon = 1e-6f;
  // Where a row is a part of one that several ranks have, `whole_width` values: the sum of its squares, [n]. groups
  // = 1.
  const float* square_sums = nullptr;
  int64_t whole_width = 0;
};
// Of each row.
struct SquareSumArgs {
  const float* in = nullptr;  // [n, width], rows in_stride apart
  float* out = nullptr;       // [n]
  int64_t n = 0;
  int64_t width = 0;
  int64_t in_stride = 0;
};
// cos and sin of the rotary angles of each token, shared by all layers of a step.
struct RopeAnglesArgs {
  const int32_t* positions = nullptr;          // [n]
  const float* inverse_frequencies = nullptr;  // [half]
  float* cos_sin = nullptr;                    // [n, 2, half]
  int64_t n = 0;
  int64_t half = 0;
  float scale = 1;  // of cos and sin: YaRN's attention factor
};
// Rotary position embedding (Su et al. 2021) of the first 2 * half values of each head, in place.
struct RopeArgs {
  float* heads = nullptr;          // [n, n_heads, head_dim], rows stride apart
  const float* cos_sin = nullptr;  // [n, 2, half]
  int64_t n = 0;
  int64_t n_heads = 0;
  int64_t head_dim = 0;
  int64_t half = 0;
  int64_t stride = 0;
  bool interleaved = false;  // pairs (2i, 2i+1) as in GGUF's Llama files; else (i, i + half)
};
// How the KV cache stores the row of a token: `width` values of dtype, kF32, kBf16 or kF8E4M3. With the latter a
// float32 scale follows for each `group` of them, which divides width: a value is its stored one times the scale, and
// the largest of the group is stored as 448.
// Where one of a group is not finite, its scale is NaN and so is all that is read of it; groups whose scale would be
// 1e-30 or less are zero.
struct KvRow {
  DType dtype = DType::kF32;
  int64_t width = 0;
  int64_t group = 0;  // of kF8E4M3

  int64_t bytes() const {
    if (dtype == DType::kF8E4M3) return width + width / group * 4;
    return width * (dtype == DType::kBf16 ? 2 : 4);
  }
};
struct StoreKvArgs {
  const float* k = nullptr;        // [n, row.width], rows stride apart
  const float* v = nullptr;        // likewise; null = the cache has one plane, such as that of latent attention
  const int32_t* slots = nullptr;  // [n]
  void* k_cache = nullptr;         // [slots] of row
  void* v_cache = nullptr;
  KvRow row;  // of kv_heads * head_dim values, or latent + rotary
  int64_t n = 0;
  int64_t stride = 0;
};
// Causal attention of new tokens over the paged KV cache, softmax(q k^T * scale) v, by blocks with a running maximum
// (Milakov and Gimelshein 2018; Dao et al. 2022).
struct AttentionArgs {
  const float* q = nullptr;  // [n, n_heads, head_dim], rows stride apart
  const void* k_cache = nullptr;
  const void* v_cache = nullptr;  // [slots] of row: kv_heads * head_dim values
  KvRow row;
  DType dtype = DType::kF32;
  const int32_t* slot_table = nullptr;   // [rows, table_width]
  const int32_t* table_rows = nullptr;   // [n_seqs]
  const int32_t* query_start = nullptr;  // [n_seqs + 1]
  const int32_t* seq_lens = nullptr;     // [n_seqs], the new tokens included
  void* out = nullptr;                   // [n, n_heads * head_dim] of dtype
  int64_t n_seqs = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t stride = 0;
  int64_t table_width = 0;
  float scale = 1;
};
// Causal attention of new tokens over a paged latent cache with the up-projections absorbed (DeepSeek-V2 2024, section
// 2.1): a cache row [latent, rotary] is the key of every head, and its latent part their value.
//   out[i, h] = softmax_p(scale (q_latent[i, h] . latent_p + q_rotary[i, h] . rotary_p)) latent_p
struct LatentAttentionArgs {
  const float* q_latent = nullptr;  // [n, n_heads, latent]; queries are rounded to dtype for the products
  const float* q_rotary = nullptr;  // [n, n_heads, rotary]
  int64_t q_rotary_stride = 0;      // from row to row
  int64_t q_rotary_head_stride = 0;
  const void* cache = nullptr;  // [slots] of row: latent + rotary values
  KvRow row;
  DType dtype = DType::kF32;
  const int32_t* slot_table = nullptr;   // [rows, table_width]
  const int32_t* table_rows = nullptr;   // [n_seqs]
  const int32_t* query_start = nullptr;  // [n_seqs + 1]
  const int32_t* seq_lens = nullptr;     // [n_seqs], the new tokens included
  float* out = nullptr;                  // [n, n_heads, latent]
  int64_t n_seqs = 0;
  int64_t n_heads = 0;
  int64_t latent = 0;
  int64_t rotary = 0;
  int64_t table_width = 0;
  float scale = 1;
};
// The same attention with the keys and values of each head expanded from the latents of all positions, in pieces that
// stay in a cache: k_p[h] = [K_h latent_p, rotary_p], v_p[h] = V_h latent_p. Cheaper for many queries, see
// models/layers/mla.h.
struct ExpandedAttentionArgs {
  const float* q = nullptr;     // [n, n_heads, nope + rotary], rounded to dtype for the products
  int64_t q_stride = 0;         // from row to row
  const void* cache = nullptr;  // [slots] of row: latent + rotary values
  KvRow row;
  DType dtype = DType::kF32;
  const LinearShape* key_shape = nullptr;  // whole, [nope, latent]
  const void* keys = nullptr;              // [n_heads] packed, key_stride bytes apart: K
  size_t key_stride = 0;
  const LinearShape* value_shape = nullptr;  // whole, [value, latent]
  const void* values = nullptr;              // [n_heads] packed, value_stride bytes apart: V
  size_t value_stride = 0;
  const int32_t* slot_table = nullptr;   // [rows, table_width]
  const int32_t* table_rows = nullptr;   // [n_seqs]
  const int32_t* query_start = nullptr;  // [n_seqs + 1]
  const int32_t* seq_lens = nullptr;     // [n_seqs], the new tokens included
  void* out = nullptr;                   // [n, n_heads * value] of dtype
  int64_t n_seqs = 0;
  int64_t n_heads = 0;
  int64_t rotary = 0;
  int64_t table_width = 0;
  float scale = 1;
};
struct SiluMulArgs {
  const float* gate_up = nullptr;  // [n, 2 * width]: gate, then up
  void* out = nullptr;             // [n, width] of out_dtype: silu(gate) * up
  DType out_dtype = DType::kF32;
  int64_t n = 0;
  int64_t width = 0;
  const int32_t* rows = nullptr;  // [n] the rows of both that are meant, -1 = none; null = the first n
};
// What two products make of the same input: silu(in G^T) * (in U^T).
struct GatedLinearArgs {
  LinearArgs product;   // by G, then U, [2 * width, in]; without bias and accumulate. What is in its `out` then is open
  void* out = nullptr;  // [product.n, width] of out_dtype: exactly what linear() and silu_mul() make of it
  DType out_dtype = DType::kF32;
};
struct GatherRowsArgs {
  const float* in = nullptr;      // [m, width]
  const int32_t* rows = nullptr;  // [n], each in [0, m)
  float* out = nullptr;           // [n, width]
  int64_t n = 0;
  int64_t width = 0;
};

// Which experts each token goes to, and with which weight (Shazeer et al. 2017; DeepSeek-V2 and V3 2024).
enum class RouterScore : uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : uint8_t { kBest, kBestTwo };  // of a group's experts: the best, or the sum of the best two
struct RouteArgs {
  const float* logits = nullptr;    // [n, experts]
  const float* bias = nullptr;      // [experts] added to the scores for the choice, not for the weights; null = none
  int32_t* ids = nullptr;           // [n, top_k] the best first, of equal ones the lower; -1 where only NaN is left
  float* weights = nullptr;         // [n, top_k] scores of the chosen, times scale
  float* margins = nullptr;         // [n] least change of a score for which another choice is made; null = not wanted
  const int32_t* forced = nullptr;  // [n, top_k] the choice that the weights are for, if not `ids`: to compare two runs
  // [n / padded_rows] of groups that follow each other, each filled up to padded_rows: the rows that it has. What fills
  // it up chooses nothing: ids -1, weights and margins 0. Null: all are rows.
  const int32_t* group_rows = nullptr;
  int64_t padded_rows = 0;
  int64_t n = 0;
  int64_t experts = 0;
  int64_t top_k = 0;
  RouterScore score = RouterScore::kSoftmax;
  int64_t groups = 1;       // of experts that follow each other; the choice is within the kept_groups best
  int64_t kept_groups = 1;  // these have top_k experts at least
  GroupScore group_score = GroupScore::kBest;
  bool renormalise = false;  // the weights are divided by their sum before they are scaled
  float scale = 1;
};
// The copy of its expert that each pair of a token and an expert goes to, where experts have several.
struct ChooseCopiesArgs {
  const int32_t* ids = nullptr;     // [n, top_k] experts; -1 = none
  const int32_t* copies = nullptr;  // [experts, width] copies of each, one at least, then -1
  int32_t* out = nullptr;           // [n, top_k] copies; -1 = none
  int64_t n = 0;
  int64_t top_k = 0;
  int64_t width = 0;
  // Pair p goes to copy splitmix64(seed + p) modulo their number; else row i to copy i + expert modulo their number.
  bool random = false;
  uint64_t seed = 0;
};
// Of Steele, Lea and Flood 2014.
constexpr uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
// A place for each pair of token and expert, so that the rows of an expert follow each other, in the order of the
// tokens. Each expert has room for padded_rows() of them, so that all is within n_pairs + group_padding(experts) rows.
struct SortByExpertArgs {
  const int32_t* ids = nullptr;  // [n_pairs] those not in [first, first + experts) have no row here
  int32_t* starts = nullptr;     // [experts] first row
  int32_t* counts = nullptr;     // [experts] rows
  int32_t* rows = nullptr;       // [n_pairs] row of each pair; -1 where there is none
  int64_t* loads = nullptr;      // [experts] counts are added to them; null = none
  int64_t n_pairs = 0;
  int64_t first = 0;    // the number of the first expert
  int64_t experts = 0;  // how many there are here
};
struct ScatterRowsArgs {
  const void* in = nullptr;       // [n, width] of dtype
  const int32_t* rows = nullptr;  // [n, copies] rows of `out` that become copies of row i; -1 = none
  void* out = nullptr;            // [m, width] of dtype
  DType dtype = DType::kF32;
  int64_t n = 0;
  int64_t copies = 0;
  int64_t width = 0;
};
// Rows as they travel between ranks in fewer bytes, and back. What KvRow says of values and scales holds here too.
struct PackRowsArgs {
  const void* in = nullptr;  // [n, row.width] of dtype
  void* out = nullptr;       // [n] of row
  DType dtype = DType::kF32;
  KvRow row;
  int64_t n = 0;
};
struct UnpackRowsArgs {
  const void* in = nullptr;  // [n] of row
  void* out = nullptr;       // [n, row.width] of dtype
  DType dtype = DType::kF32;
  KvRow row;
  int64_t n = 0;
};
// Each expert's rows times its own weight, which is read once.
struct GroupedLinearArgs {
  const LinearShape* shape = nullptr;
  const void* weights = nullptr;  // [experts] packed, weight_stride bytes apart
  size_t weight_stride = 0;
  const void* in = nullptr;         // [rows, in] of shape->dtype, sorted by expert
  const int32_t* starts = nullptr;  // [experts], of sort_by_expert()
  const int32_t* counts = nullptr;  // [experts]
  float* out = nullptr;             // [rows, out]
  int64_t experts = 0;
};
// Likewise gated_linear() for each expert's rows.
struct GatedGroupedLinearArgs {
  GroupedLinearArgs product;  // by each expert's G, then U; what is in its `out` then is open
  void* out = nullptr;        // [rows, width] of out_dtype
  DType out_dtype = DType::kF32;
  // All rows of experts, as sort_by_expert() lists them: [n], -1 = none. What is in others of `out` stays.
  const int32_t* rows = nullptr;
  int64_t n = 0;
};
struct CombineRowsArgs {
  const float* in = nullptr;       // [m, width]
  const int32_t* rows = nullptr;   // [n, copies] rows of `in`; -1 = none
  const float* weights = nullptr;  // [n, copies]; null = each 1
  float* out = nullptr;            // [n, width]; the weighted rows are added to it, in their order
  int64_t n = 0;
  int64_t copies = 0;
  int64_t width = 0;
};

// Attention without softmax whose past is one matrix for each head (Qin et al. 2024; MiniMax-01 2025): in the order of
// the tokens, S = e^-rate S + k^T v and out = q S, with q, k and v passed through SiLU before. A sequence whose first
// token is among the new ones begins with S = 0, whatever lies in its row.
struct LightningAttentionArgs {
  const float* qkv = nullptr;            // [n, n_heads, 3, head_dim] q, k and v of each head
  const float* rates = nullptr;          // [n_heads]
  const int32_t* table_rows = nullptr;   // [n_seqs]
  const int32_t* query_start = nullptr;  // [n_seqs + 1]
  const int32_t* seq_lens = nullptr;     // [n_seqs], the new tokens included
  float* states = nullptr;               // [rows, n_heads, head_dim (of k), head_dim (of v)]
  float* out = nullptr;                  // [n, n_heads * head_dim]
  int64_t n_seqs = 0;
  int64_t n_heads = 0;
  int64_t head_dim = 0;
};
struct SigmoidMulArgs {
  const float* gate = nullptr;  // [n, width]
  const float* in = nullptr;    // [n, width]
  void* out = nullptr;          // [n, width] of out_dtype: sigmoid(gate) * in
  DType out_dtype = DType::kF32;
  int64_t n = 0;
  int64_t width = 0;
};
struct ScaleArgs {
  float* values = nullptr;  // [n, width], multiplied in place
  float by = 1;
  int64_t n = 0;
  int64_t width = 0;
};

// A device: its memory, and one function per kernel. Kernels are asynchronous by contract: what they write may be read
// by later kernels of the stream, and by the host after synchronize(). n == 0 is legal everywhere.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  virtual std::unique_ptr<Stream> make_stream() const = 0;

  // Device memory, aligned to 64 bytes, zero where the device gives it for nothing. kExhausted.
  virtual Result<void*> allocate(size_t bytes) const = 0;
  virtual void release(void* memory, size_t bytes) const = 0;
  // True if the host may read and write device memory, so that weights can be packed in place and shared.
  virtual bool host_visible() const = 0;
  virtual void copy_to_device(const Context& context, void* to, const void* from, size_t bytes) const = 0;
  virtual void copy_to_host(const Context& context, void* to, const void* from, size_t bytes) const = 0;
  // Within device memory; the two do not overlap.
  virtual void copy(const Context& context, void* to, const void* from, size_t bytes) const = 0;
  // Zeros.
  virtual void clear(const Context& context, void* at, size_t bytes) const = 0;
  virtual void synchronize(const Context& context) const = 0;

  // True if linear() takes this type here.
  virtual bool multiplies(DType dtype) const = 0;
  // True if a weight that is stored as shape.stored is better kept so than widened for products of this shape.
  virtual bool keeps(const LinearShape& shape) const = 0;
  // True if gated_linear() and gated_grouped_linear() by such weights, of any number of rows, touch nothing of their
  // product's `out`.
  virtual bool fuses_gates(const LinearShape& shape) const = 0;
  // Rows that buffers must have for n rows of a matrix product: kernels may compute a few more than asked.
  virtual int64_t padded_rows(int64_t n) const = 0;
  // Rows beyond their number that buffers must have for rows in `groups`: each group is padded for its own product.
  virtual int64_t group_padding(int64_t groups) const = 0;
  virtual size_t packed_bytes(const LinearShape& shape) const = 0;
  // Packs into host memory of packed_bytes().
  virtual void pack(const LinearShape& shape, const RowReader& rows, void* to) const = 0;

  virtual void linear(const Context& context, const LinearArgs& args) const = 0;
  virtual void gated_linear(const Context& context, const GatedLinearArgs& args) const = 0;
  virtual void head_linear(const Context& context, const HeadLinearArgs& args) const = 0;
  virtual void embed(const Context& context, const EmbedArgs& args) const = 0;
  virtual void rms_norm(const Context& context, const RmsNormArgs& args) const = 0;
  virtual void square_sum(const Context& context, const SquareSumArgs& args) const = 0;
  virtual void rope_angles(const Context& context, const RopeAnglesArgs& args) const = 0;
  virtual void rope(const Context& context, const RopeArgs& args) const = 0;
  virtual void store_kv(const Context& context, const StoreKvArgs& args) const = 0;
  virtual void attention(const Context& context, const AttentionArgs& args) const = 0;
  virtual void latent_attention(const Context& context, const LatentAttentionArgs& args) const = 0;
  virtual void expanded_attention(const Context& context, const ExpandedAttentionArgs& args) const = 0;
  virtual void silu_mul(const Context& context, const SiluMulArgs& args) const = 0;
  virtual void gather_rows(const Context& context, const GatherRowsArgs& args) const = 0;
  virtual void route(const Context& context, const RouteArgs& args) const = 0;
  virtual void sort_by_expert(const Context& context, const SortByExpertArgs& args) const = 0;
  virtual void scatter_rows(const Context& context, const ScatterRowsArgs& args) const = 0;
  virtual void pack_rows(const Context& context, const PackRowsArgs& args) const = 0;
  virtual void unpack_rows(const Context& context, const UnpackRowsArgs& args) const = 0;
  virtual void grouped_linear(const Context& context, const GroupedLinearArgs& args) const = 0;
  virtual void gated_grouped_linear(const Context& context, const GatedGroupedLinearArgs& args) const = 0;
  virtual void combine_rows(const Context& context, const CombineRowsArgs& args) const = 0;
  virtual void lightning_attention(const Context& context, const LightningAttentionArgs& args) const = 0;
  virtual void sigmoid_mul(const Context& context, const SigmoidMulArgs& args) const = 0;
  virtual void scale(const Context& context, const ScaleArgs& args) const = 0;
  virtual void choose_copies(const Context& context, const ChooseCopiesArgs& args) const = 0;
};

struct BackendRow {
  std::string_view name;
  std::unique_ptr<Backend> (*make)(int threads);
  bool host_visible = false;  // as of its backends, for whoever must not open the device
  std::string_view help;
};
const std::vector<BackendRow>& backends();
// Null if there is no such device.
const BackendRow* find_backend(std::string_view name);
// kBadOption names the known devices.
Result<std::unique_ptr<Backend>> make_backend(std::string_view name, int threads);

// kBf16 if this machine multiplies bf16 in hardware, else kF32.
DType best_dtype();

}  // namespace sluice::kernels
