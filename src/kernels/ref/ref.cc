#include "kernels/ref/ref.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace sluice::kernels::ref {
namespace {

double value_at(const void* values, DType dtype, int64_t i) {
  if (dtype == DType::kBf16) return tensor::bf16_to_float(static_cast<const uint16_t*>(values)[i]);
  return static_cast<const float*>(values)[i];
}

void put(void* values, DType dtype, int64_t i, double value) {
  if (dtype == DType::kBf16) {
    static_cast<uint16_t*>(values)[i] = tensor::float_to_bf16(static_cast<float>(value));
  } else {
    static_cast<float*>(values)[i] = static_cast<float>(value);
  }
}

// Value i of the row in a slot of the KV cache.
double cached_value(const void* cache, const KvRow& format, int64_t slot, int64_t i) {
  const char* const row = static_cast<const char*>(cache) + slot * format.bytes();
  if (format.dtype != DType::kF8E4M3) return value_at(row, format.dtype, i);
  float scale;
  std::memcpy(&scale, row + format.width + i / format.group * 4, 4);
  return static_cast<double>(tensor::f8_e4m3_to_float(static_cast<uint8_t>(row[i]))) * static_cast<double>(scale);
}

void store_row(const float* in, const KvRow& format, void* cache, int64_t slot) {
  char* const row = static_cast<char*>(cache) + slot * format.bytes();
  if (format.dtype != DType::kF8E4M3) {
    for (int64_t j = 0; j < format.width; ++j) put(row, format.dtype, j, in[j]);
    return;
  }
  for (int64_t begin = 0; begin < format.width; begin += format.group) {
    float top = 0;
    bool finite = true;
    for (int64_t j = begin; j < begin + format.group; ++j) {
      finite = finite && std::isfinite(in[j]);
      top = std::max(top, std::abs(in[j]));
    }
    const bool zero = top / 448.0f <= 1e-30f;
    const float inverse = zero ? 0 : 1.0f / (top / 448.0f);
    const float scale = finite ? (zero ? 0 : top / 448.0f) : std::nanf("");
    std::memcpy(row + format.width + begin / format.group * 4, &scale, 4);
    for (int64_t j = begin; j < begin + format.group; ++j) {
      row[j] = static_cast<char>(tensor::float_to_f8_e4m3(in[j] * inverse));
    }
  }
}

}  // namespace

void linear(const LinearArgs& args) {
  const LinearShape& shape = *args.shape;
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < shape.out; ++j) {
      double sum = args.bias == nullptr ? 0 : args.bias[j];
      for (int64_t k = 0; k < shape.in; ++k) {
        sum += value_at(args.in, shape.dtype, i * shape.in + k) * value_at(args.weight, shape.dtype, j * shape.in + k);
      }
      float& out = args.out[i * shape.out + j];
      out = static_cast<float>(args.accumulate ? out + sum : sum);
    }
  }
}

void head_linear(const HeadLinearArgs& args) {
  const LinearShape& shape = *args.shape;
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t h = 0; h < args.n_heads; ++h) {
      const float* in = args.in + i * args.in_stride + h * args.in_head_stride;
      const void* weight = static_cast<const char*>(args.weights) + static_cast<size_t>(h) * args.weight_stride;
      for (int64_t j = 0; j < shape.out; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < shape.in; ++k) sum += in[k] * value_at(weight, shape.dtype, j * shape.in + k);
        put(args.out, args.out_dtype, (i * args.n_heads + h) * shape.out + j, sum);
      }
    }
  }
}

void embed(const EmbedArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < args.width; ++j) {
      const int64_t row = args.ids[i] - args.first;
      const bool known = row >= 0 && row < args.rows;
      args.out[i * args.width + j] =
          known ? static_cast<float>(value_at(args.table, args.dtype, row * args.width + j)) : 0;
    }
  }
}

void rms_norm(const RmsNormArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t g = 0; g < args.groups; ++g) {
      const float* in = args.in + i * args.in_stride + g * args.width;
      double squares = 0;
      for (int64_t j = 0; j < args.width; ++j) squares += static_cast<double>(in[j]) * in[j];
      if (args.square_sums != nullptr) squares = args.square_sums[i];
      const int64_t width = args.square_sums != nullptr ? args.whole_width : args.width;
      const double root = std::sqrt(squares / static_cast<double>(width) + args.epsilon);
      for (int64_t j = 0; j < args.width; ++j) {
        put(args.out, args.out_dtype, i * args.out_stride + g * args.width + j, in[j] / root * args.weight[j]);
      }
    }
  }
}

void square_sum(const SquareSumArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < args.width; ++j) sum += std::pow(static_cast<double>(args.in[i * args.in_stride + j]), 2);
    args.out[i] = static_cast<float>(sum);
  }
}

void rope_angles(const RopeAnglesArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < args.half; ++j) {
      const long double angle = static_cast<long double>(args.positions[i]) * args.inverse_frequencies[j];
      args.cos_sin[(i * 2 + 0) * args.half + j] = static_cast<float>(std::cos(angle) * args.scale);
      args.cos_sin[(i * 2 + 1) * args.half + j] = static_cast<float>(std::sin(angle) * args.scale);
    }
  }
}

void rope(const RopeArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t h = 0; h < args.n_heads; ++h) {
      for (int64_t j = 0; j < args.half; ++j) {
        float* head = args.heads + i * args.stride + h * args.head_dim;
        float& x = args.interleaved ? head[2 * j] : head[j];
        float& y = args.interleaved ? head[2 * j + 1] : head[j + args.half];
        const double cosine = args.cos_sin[(i * 2 + 0) * args.half + j];
        const double sine = args.cos_sin[(i * 2 + 1) * args.half + j];
        const double turned_x = x * cosine - y * sine;
        const double turned_y = x * sine + y * cosine;
        x = static_cast<float>(turned_x);
        y = static_cast<float>(turned_y);
      }
    }
  }
}

void store_kv(const StoreKvArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    store_row(args.k + i * args.stride, args.row, args.k_cache, args.slots[i]);
    if (args.v != nullptr) store_row(args.v + i * args.stride, args.row, args.v_cache, args.slots[i]);
  }
}

void pack_rows(const PackRowsArgs& args) {
  std::vector<float> row(static_cast<size_t>(args.row.width));
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < args.row.width; ++j) {
      row[static_cast<size_t>(j)] = static_cast<float>(value_at(args.in, args.dtype, i * args.row.width + j));
    }
    store_row(row.data(), args.row, args.out, i);
  }
}

void unpack_rows(const UnpackRowsArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < args.row.width; ++j) {
      put(args.out, args.dtype, i * args.row.width + j, cached_value(args.in, args.row, i, j));
    }
  }
}

void attention(const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const int64_t queries = args.query_start[s + 1] - args.query_start[s];
    const int32_t* slots = args.slot_table + args.table_rows[s] * args.table_width;
    for (int64_t r = 0; r < queries; ++r) {
      const int64_t row = args.query_start[s] + r;
      const int64_t visible = args.seq_lens[s] - queries + r + 1;  // causal: itself and what is before it
      for (int64_t h = 0; h < args.n_heads; ++h) {
        const int64_t kv_head = h / (args.n_heads / args.n_kv_heads);
        const float* q = args.q + row * args.stride + h * dim;
        const auto cached = [&](const void* cache, int64_t position, int64_t d) {
          return cached_value(cache, args.row, slots[position], kv_head * dim + d);
        };
        std::vector<double> weights(static_cast<size_t>(visible));
        for (int64_t p = 0; p < visible; ++p) {
          double dot = 0;
          for (int64_t d = 0; d < dim; ++d) dot += q[d] * cached(args.k_cache, p, d);
          weights[static_cast<size_t>(p)] = dot * args.scale;
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - top);
        for (int64_t d = 0; d < dim; ++d) {
          double sum = 0;
          for (int64_t p = 0; p < visible; ++p) {
            sum += weights[static_cast<size_t>(p)] * cached(args.v_cache, p, d);
          }
          put(args.out, args.dtype, (row * args.n_heads + h) * dim + d, sum / total);
        }
      }
    }
  }
}

void latent_attention(const LatentAttentionArgs& args) {
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const int64_t queries = args.query_start[s + 1] - args.query_start[s];
    const int32_t* slots = args.slot_table + args.table_rows[s] * args.table_width;
    for (int64_t r = 0; r < queries; ++r) {
      const int64_t row = args.query_start[s] + r;
      const int64_t visible = args.seq_lens[s] - queries + r + 1;  // causal: itself and what is before it
      for (int64_t h = 0; h < args.n_heads; ++h) {
        const float* latent = args.q_latent + (row * args.n_heads + h) * args.latent;
        const float* rotary = args.q_rotary + row * args.q_rotary_stride + h * args.q_rotary_head_stride;
        const auto at = [&](int64_t p, int64_t d) { return cached_value(args.cache, args.row, slots[p], d); };
        std::vector<double> weights(static_cast<size_t>(visible));
        for (int64_t p = 0; p < visible; ++p) {
          double dot = 0;
          for (int64_t d = 0; d < args.latent; ++d) dot += latent[d] * at(p, d);
          for (int64_t d = 0; d < args.rotary; ++d) dot += rotary[d] * at(p, args.latent + d);
          weights[static_cast<size_t>(p)] = dot * args.scale;
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - top);
        for (int64_t d = 0; d < args.latent; ++d) {
          double sum = 0;
          for (int64_t p = 0; p < visible; ++p) sum += weights[static_cast<size_t>(p)] * at(p, d);
          args.out[(row * args.n_heads + h) * args.latent + d] = static_cast<float>(sum / total);
        }
      }
    }
  }
}

void expanded_attention(const ExpandedAttentionArgs& args) {
  const int64_t latent = args.key_shape->in, nope = args.key_shape->out, value = args.value_shape->out;
  const int64_t dim = nope + args.rotary;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const int64_t queries = args.query_start[s + 1] - args.query_start[s], length = args.seq_lens[s];
    const int32_t* slots = args.slot_table + args.table_rows[s] * args.table_width;
    const auto cached = [&](int64_t p, int64_t d) { return cached_value(args.cache, args.row, slots[p], d); };
    for (int64_t h = 0; h < args.n_heads; ++h) {
      const void* key_up = static_cast<const char*>(args.keys) + static_cast<size_t>(h) * args.key_stride;
      const void* value_up = static_cast<const char*>(args.values) + static_cast<size_t>(h) * args.value_stride;
      std::vector<double> keys(static_cast<size_t>(length * dim)), values(static_cast<size_t>(length * value));
      for (int64_t p = 0; p < length; ++p) {
        for (int64_t c = 0; c < latent; ++c) {
          for (int64_t d = 0; d < nope; ++d) {
            keys[static_cast<size_t>(p * dim + d)] += value_at(key_up, args.dtype, d * latent + c) * cached(p, c);
          }
          for (int64_t d = 0; d < value; ++d) {
            values[static_cast<size_t>(p * value + d)] += value_at(value_up, args.dtype, d * latent + c) * cached(p, c);
          }
        }
        for (int64_t d = 0; d < args.rotary; ++d) keys[static_cast<size_t>(p * dim + nope + d)] = cached(p, latent + d);
      }
      for (int64_t r = 0; r < queries; ++r) {
        const int64_t row = args.query_start[s] + r, visible = length - queries + r + 1;
        const float* q = args.q + row * args.q_stride + h * dim;
        std::vector<double> weights(static_cast<size_t>(visible));
        for (int64_t p = 0; p < visible; ++p) {
          for (int64_t d = 0; d < dim; ++d) {
            weights[static_cast<size_t>(p)] += q[d] * keys[static_cast<size_t>(p * dim + d)] * args.scale;
          }
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - top);
        for (int64_t d = 0; d < value; ++d) {
          double sum = 0;
          for (int64_t p = 0; p < visible; ++p) {
            sum += weights[static_cast<size_t>(p)] * values[static_cast<size_t>(p * value + d)];
          }
          put(args.out, args.dtype, (row * args.n_heads + h) * value + d, sum / total);
        }
      }
    }
  }
}

void silu_mul(const SiluMulArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    const int64_t row = args.rows == nullptr ? i : args.rows[i];
    if (row < 0) continue;
    for (int64_t j = 0; j < args.width; ++j) {
      const double gate = args.gate_up[row * 2 * args.width + j];
      const double up = args.gate_up[(row * 2 + 1) * args.width + j];
      put(args.out, args.out_dtype, row * args.width + j, gate / (1 + std::exp(-gate)) * up);
    }
  }
}

void gather_rows(const GatherRowsArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < args.width; ++j) args.out[i * args.width + j] = args.in[args.rows[i] * args.width + j];
  }
}

void lightning_attention(const LightningAttentionArgs& args) {
  const int64_t dim = args.head_dim, heads = args.n_heads;
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const bool begins = args.seq_lens[s] == args.query_start[s + 1] - args.query_start[s];
    for (int64_t h = 0; h < heads; ++h) {
      float* stored = args.states + (args.table_rows[s] * heads + h) * dim * dim;
      std::vector<double> state(stored, stored + dim * dim);
      if (begins) std::fill(state.begin(), state.end(), 0.0);
      for (int64_t row = args.query_start[s]; row < args.query_start[s + 1]; ++row) {
        const float* q = args.qkv + (row * heads + h) * 3 * dim;
        const float* k = q + dim;
        const float* v = k + dim;
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < dim; ++j) {
            double& value = state[static_cast<size_t>(i * dim + j)];
            value = std::exp(-static_cast<double>(args.rates[h])) * value + silu(k[i]) * silu(v[j]);
          }
        }
        for (int64_t j = 0; j < dim; ++j) {
          double sum = 0;
          for (int64_t i = 0; i < dim; ++i) sum += silu(q[i]) * state[static_cast<size_t>(i * dim + j)];
          args.out[(row * heads + h) * dim + j] = static_cast<float>(sum);
        }
      }
      for (int64_t i = 0; i < dim * dim; ++i) stored[i] = static_cast<float>(state[static_cast<size_t>(i)]);
    }
  }
}

void sigmoid_mul(const SigmoidMulArgs& args) {
  for (int64_t i = 0; i < args.n * args.width; ++i) {
    put(args.out, args.out_dtype, i, args.in[i] / (1 + std::exp(-static_cast<double>(args.gate[i]))));
  }
}

void scale(const ScaleArgs& args) {
  for (int64_t i = 0; i < args.n * args.width; ++i) args.values[i] *= args.by;
}

}  // namespace sluice::kernels::ref
