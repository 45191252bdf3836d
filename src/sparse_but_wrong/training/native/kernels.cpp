// The training step of sparse autoencoders as fused loops: one SAE, one thread, many steps a call.
//
// Axes: B batch, T samples of one tile, D d_in, H d_sae. A "row" is a sample. Rows of width D and H
// are padded with zeros to whole vectors (Dp, Hp), so that no loop needs a tail.
//
// A step goes tile by tile through the batch, so that everything a tile needs stays in the cache:
// encode (dense), activate, list what is active, decode (active latents only), the gradient at the
// latents, and the two outer products of the weights' gradients (active latents only). What the
// formulas are is said beside the same step in PyTorch, in ../architectures.
//
// Every sum is taken in an order that depends on nothing but the SAE itself, so its result is the
// same bit for bit in any company.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int W = 8;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int REGISTERS = 32;
#else
constexpr int W = 4;
constexpr int REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef float uvec __attribute__((vector_size(W * 4), aligned(4)));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
static inline vec loadu(const float* p) { return *reinterpret_cast<const uvec*>(p); }
static inline void storeu(float* p, vec v) { *reinterpret_cast<uvec*>(p) = v; }
static inline vec all(float x) { return vec{} + x; }
static inline vec where(ivec mask, vec a, vec b) { return mask ? a : b; }
static inline vec where(ivec mask, vec a) { return (vec)(mask & (ivec)a); }
static inline vec abs_(vec v) { return (vec)((ivec)v & (ivec{} + 0x7fffffff)); }

static inline float total(vec v) {
    float sum = 0;
    for (int i = 0; i < W; i++) sum += v[i];
    return sum;
}

static inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// exp of values ≤ 0, to about one unit in the last place; 0 far below.
// Cody-Waite reduction to |r| ≤ ln2 / 2 and the Taylor polynomial of degree 7.
static inline vec exp_negative(vec x) {
    x = where(x < all(-87.0f), all(-87.0f), x);
    vec magic = all(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer
    vec n = x * all(1.44269504f) + magic;
    ivec exponent = ((ivec)n - (ivec)magic) << 23;
    n -= magic;
    vec r = x - n * all(0.693359375f);
    r = r + n * all(2.12194440e-4f);
    vec p = all(1.0f / 5040);
    p = p * r + all(1.0f / 720);
    p = p * r + all(1.0f / 120);
    p = p * r + all(1.0f / 24);
    p = p * r + all(1.0f / 6);
    p = p * r + all(0.5f);
    p = p * r + all(1.0f);
    p = p * r + all(1.0f);
    return (vec)((ivec)p + exponent);
}

// ---------------------------------------------------------------------------------------------
// Dense products

constexpr int NR_MAX = REGISTERS == 32 ? 4 : 2;  // vectors of a panel

constexpr int rows_at_once(int nr) {
    return REGISTERS == 32 ? (nr == 4 ? 6 : nr == 3 ? 8 : nr == 2 ? 12 : 14) : (nr == 2 ? 5 : 10);
}

// c[MR × NR vectors] = init + onto + a[MR × K] · panel[K × NR vectors]
template <int MR, int NR>
static void product_tile(const float* a, int64_t lda, const float* panel, int64_t K, float* c,
                         int64_t ldc, const float* init, const float* onto, int64_t ldonto) {
    vec acc[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) {
            acc[i][j] = init ? load(init + j * W) : vec{};
            if (onto) acc[i][j] += load(onto + i * ldonto + j * W);
        }
    for (int64_t k = 0; k < K; k++) {
        vec b[NR];
        for (int j = 0; j < NR; j++) b[j] = load(panel + k * NR * W + j * W);
        for (int i = 0; i < MR; i++) {
            vec value = all(a[i * lda + k]);
            for (int j = 0; j < NR; j++) acc[i][j] += value * b[j];
        }
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) store(c + i * ldc + j * W, acc[i][j]);
}

template <int MR, int NR>
static void product_rows(int rows, const float* a, int64_t lda, const float* panel, int64_t K,
                         float* c, int64_t ldc, const float* init, const float* onto,
                         int64_t ldonto) {
    if (rows == MR)
        product_tile<MR, NR>(a, lda, panel, K, c, ldc, init, onto, ldonto);
    else if constexpr (MR > 1)
        product_rows<MR - 1, NR>(rows, a, lda, panel, K, c, ldc, init, onto, ldonto);
}

template <int NR>
static void product_panel(int64_t M, const float* a, int64_t lda, const float* panel, int64_t K,
                          float* c, int64_t ldc, const float* init, const float* onto,
                          int64_t ldonto) {
    constexpr int MR = rows_at_once(NR);
    for (int64_t m = 0; m < M; m += MR)
        product_rows<MR, NR>(int(std::min<int64_t>(MR, M - m)), a + m * lda, lda, panel, K,
                             c + m * ldc, ldc, init, onto ? onto + m * ldonto : nullptr,
                             ldonto);
}

// c[M × N vectors] = init + onto + a[M × K] · b, with b packed into panels of NR_MAX vectors;
// init is one row for all, onto a row each, and either may be missing
static void product(int64_t M, int64_t n_vectors, int64_t K, const float* a, int64_t lda,
                    const float* panels, float* c, int64_t ldc, const float* init,
                    const float* onto, int64_t ldonto) {
    for (int64_t j = 0; j < n_vectors; j += NR_MAX) {
        const float* panel = panels + j * W * K;
        const float* i = init ? init + j * W : nullptr;
        const float* s = onto ? onto + j * W : nullptr;
        float* out = c + j * W;
        switch (std::min<int64_t>(NR_MAX, n_vectors - j)) {
            case 1: product_panel<1>(M, a, lda, panel, K, out, ldc, i, s, ldonto); break;
            case 2: product_panel<2>(M, a, lda, panel, K, out, ldc, i, s, ldonto); break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 3: product_panel<3>(M, a, lda, panel, K, out, ldc, i, s, ldonto); break;
            case 4: product_panel<4>(M, a, lda, panel, K, out, ldc, i, s, ldonto); break;
#endif
        }
    }
}

// A matrix [K × N] with strides, packed for `product`; columns beyond N are 0.
static void pack(const float* m, int64_t stride_k, int64_t stride_n, int64_t K, int64_t N,
                 float* panels) {
    int64_t n_vectors = padded(N) / W;
    for (int64_t j = 0; j < n_vectors; j += NR_MAX) {
        int64_t width = std::min<int64_t>(NR_MAX, n_vectors - j) * W;
        int64_t filled = std::min<int64_t>(width, N - j * W);
        float* panel = panels + j * W * K;
        const float* from = m + j * W * stride_n;
        for (int64_t k = 0; k < K; k++) {
            for (int64_t n = 0; n < filled; n++)
                panel[k * width + n] = from[k * stride_k + n * stride_n];
            for (int64_t n = filled; n < width; n++) panel[k * width + n] = 0;
        }
    }
}

// g[i, :] += Σ_t a[t, i] · x[t, :] for MI columns of a
template <int MI, int NR>
static void outer_tile(int64_t T, const float* a, int64_t lda, const float* x, int64_t ldx,
                       float* g, int64_t ldg) {
    vec acc[MI][NR];
    for (int i = 0; i < MI; i++)
        for (int j = 0; j < NR; j++) acc[i][j] = load(g + i * ldg + j * W);
    for (int64_t t = 0; t < T; t++) {
        vec b[NR];
        for (int j = 0; j < NR; j++) b[j] = load(x + t * ldx + j * W);
        for (int i = 0; i < MI; i++) {
            vec value = all(a[t * lda + i]);
            for (int j = 0; j < NR; j++) acc[i][j] += value * b[j];
        }
    }
    for (int i = 0; i < MI; i++)
        for (int j = 0; j < NR; j++) store(g + i * ldg + j * W, acc[i][j]);
}

template <int NR>
static void outer_columns(int64_t T, int64_t n, const float* a, int64_t lda, const float* x,
                          int64_t ldx, float* g, int64_t ldg) {
    constexpr int MI = REGISTERS == 32 ? 6 : 4;
    int64_t i = 0;
    for (; i + MI <= n; i += MI) outer_tile<MI, NR>(T, a + i, lda, x, ldx, g + i * ldg, ldg);
    for (; i < n; i++) outer_tile<1, NR>(T, a + i, lda, x, ldx, g + i * ldg, ldg);
}

// g[n × Dp] += aᵀ · x
static void outer(int64_t T, int64_t n, int64_t d_vectors, const float* a, int64_t lda,
                  const float* x, int64_t ldx, float* g, int64_t ldg) {
    for (int64_t j = 0; j < d_vectors; j += NR_MAX) {
        const float* from = x + j * W;
        float* to = g + j * W;
        switch (std::min<int64_t>(NR_MAX, d_vectors - j)) {
            case 1: outer_columns<1>(T, n, a, lda, from, ldx, to, ldg); break;
            case 2: outer_columns<2>(T, n, a, lda, from, ldx, to, ldg); break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 3: outer_columns<3>(T, n, a, lda, from, ldx, to, ldg); break;
            case 4: outer_columns<4>(T, n, a, lda, from, ldx, to, ldg); break;
#endif
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Products with sparse activations

constexpr int BLOCK = REGISTERS / 4;  // vectors of a row kept in registers

// out[0 … NB) += Σ_i value[i] · rows[index[i]]
template <int NB>
static inline void gather_rows(int64_t n, const int32_t* index, const float* value,
                               const float* rows, int64_t ldr, float* out) {
    vec acc[NB];
    for (int j = 0; j < NB; j++) acc[j] = load(out + j * W);
    for (int64_t i = 0; i < n; i++) {
        const float* row = rows + index[i] * ldr;
        vec v = all(value[i]);
        for (int j = 0; j < NB; j++) acc[j] += v * load(row + j * W);
    }
    for (int j = 0; j < NB; j++) store(out + j * W, acc[j]);
}

template <int NB>
static inline void gather_last(int64_t n_vectors, int64_t n, const int32_t* index,
                               const float* value, const float* rows, int64_t ldr, float* out) {
    if (n_vectors == NB)
        gather_rows<NB>(n, index, value, rows, ldr, out);
    else if constexpr (NB > 1)
        gather_last<NB - 1>(n_vectors, n, index, value, rows, ldr, out);
}

static inline void gather(int64_t n_vectors, int64_t n, const int32_t* index, const float* value,
                          const float* rows, int64_t ldr, float* out) {
    int64_t j = 0;
    for (; j + BLOCK < n_vectors; j += BLOCK)
        gather_rows<BLOCK>(n, index, value, rows + j * W, ldr, out + j * W);
    gather_last<BLOCK>(n_vectors - j, n, index, value, rows + j * W, ldr, out + j * W);
}

static inline float dot(int64_t n_vectors, const float* a, const float* b) {
    vec s0{}, s1{};
    int64_t j = 0;
    for (; j + 2 <= n_vectors; j += 2) {
        s0 += load(a + j * W) * load(b + j * W);
        s1 += load(a + j * W + W) * load(b + j * W + W);
    }
    if (j < n_vectors) s0 += load(a + j * W) * load(b + j * W);
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)(s0 + s1));
#else
    return total(s0 + s1);
#endif
}

constexpr int64_t TILE = 64;  // samples of a tile, and bits of a mask

// Two rows of gradients at once, for all samples whose bit is set:
// g1[0 … NB) += Σ a[t] · x[t, :] and g2 likewise of b and y
template <int NB>
static inline void gather_samples(uint64_t samples, const float* a, const float* b, int64_t lda,
                                  const float* x, const float* y, int64_t ldx, float* g1,
                                  float* g2) {
    vec acc1[NB], acc2[NB];
    for (int j = 0; j < NB; j++) acc1[j] = load(g1 + j * W), acc2[j] = load(g2 + j * W);
    for (; samples; samples &= samples - 1) {
        int64_t t = __builtin_ctzll(samples);
        vec v1 = all(a[t * lda]), v2 = all(b[t * lda]);
        for (int j = 0; j < NB; j++) {
            acc1[j] += v1 * load(x + t * ldx + j * W);
            acc2[j] += v2 * load(y + t * ldx + j * W);
        }
    }
    for (int j = 0; j < NB; j++) store(g1 + j * W, acc1[j]), store(g2 + j * W, acc2[j]);
}

template <int NB>
static inline void gather_samples_last(int64_t n_vectors, uint64_t samples, const float* a,
                                       const float* b, int64_t lda, const float* x, const float* y,
                                       int64_t ldx, float* g1, float* g2) {
    if (n_vectors == NB)
        gather_samples<NB>(samples, a, b, lda, x, y, ldx, g1, g2);
    else if constexpr (NB > 1)
        gather_samples_last<NB - 1>(n_vectors, samples, a, b, lda, x, y, ldx, g1, g2);
}

using mask_t = uint16_t;  // a bit for each float of a vector

// A mask for each vector of a row: of what is not 0, NaN included.
static inline int64_t mask_active(const float* row, int64_t n, mask_t* masks) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) {
#if defined(__AVX512F__)
        mask_t mask = _mm512_cmp_ps_mask(_mm512_load_ps(row + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
#else
        mask_t mask = 0;
        for (int j = 0; j < W; j++) mask |= mask_t((row[i + j] != 0) << j);
#endif
        masks[i / W * TILE] = mask;
        count += __builtin_popcount(mask);
    }
    return count;
}

// Indices and values of what the masks of a row say.
static inline void list_active(const float* row, int64_t n, const mask_t* masks, int32_t* index,
                               float* value) {
    int64_t count = 0;
#if defined(__AVX512F__)
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < n; i += W) {
        __mmask16 mask = masks[i / W * TILE];
        // Compressing into a register and storing it whole: into memory is slow on some machines.
        _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(mask, at));
        _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(mask, _mm512_load_ps(row + i)));
        count += __builtin_popcount(mask);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(W));
    }
#else
    for (int64_t i = 0; i < n; i += W)
        for (unsigned mask = masks[i / W * TILE]; mask; mask &= mask - 1) {
            int64_t at = i + __builtin_ctz(mask);
            index[count] = int32_t(at);
            value[count++] = row[at];
        }
#endif
}

// From a mask of latents for each sample to a mask of samples for each latent.
static inline void transpose_masks(const mask_t* masks, uint64_t* samples) {
#if defined(__AVX512BW__)
    __m512i low = _mm512_loadu_si512(masks), high = _mm512_loadu_si512(masks + 32);
    for (int j = 0; j < W; j++) {
        __m512i bit = _mm512_set1_epi16(int16_t(1 << j));
        samples[j] = uint64_t(_mm512_test_epi16_mask(low, bit)) |
                     uint64_t(_mm512_test_epi16_mask(high, bit)) << 32;
    }
#else
    for (int j = 0; j < W; j++) {
        uint64_t bits = 0;
        for (int64_t t = 0; t < TILE; t++) bits |= uint64_t(masks[t] >> j & 1) << t;
        samples[j] = bits;
    }
#endif
}

// ---------------------------------------------------------------------------------------------
// What the caller hands over; mirrored field by field in bindings.py

enum Architecture : int64_t { JUMPRELU = 0, STANDARD = 1, GATED = 2, TOPK = 3, BATCHTOPK = 4 };
enum Mode : int64_t { STEP = 0, TANH = 1, QUADRATIC = 2 };
enum Figure { MSE, SPARSITY, PRE_ACT, AUX, N_ACTIVE, GRAD_NORM, INNER };  // then inner levels

constexpr int MAX_LEVELS = 32;

struct Config {
    int64_t architecture;
    int64_t D, H;
    int64_t P;                                       // floats of one SAE's flat parameters
    int64_t W_enc, W_dec, b_dec, threshold, b_mag, r_mag;  // where each begins
    int64_t b_enc;                                         // or b_gate
    int64_t apply_b_dec;
    int64_t mode;
    int64_t ste_to_input;
    int64_t has_pre_act_loss;
    int64_t rescale;
    int64_t n_levels;
    int64_t widths[MAX_LEVELS];
    int64_t matryoshka_aux;
    int64_t dead_window;
    int64_t max_batch;
    double beta1, beta2;
};

struct Sae {
    float* params;
    float* exp_avg;
    float* exp_avg_sq;
    int64_t* last_fired;
    float* window_fired;
    int64_t* diverged_at;
    double* topk_threshold;
    double bandwidth, tanh_scale, target_l0, pre_act_coefficient;
    double aux_coefficient, topk_threshold_lr;
    double kth_value;  // of the last step: where to look for the next, no more
    double n_active;   // added to over the steps of a call
    double figures[INNER + MAX_LEVELS];
};

// ---------------------------------------------------------------------------------------------
// Top-k without sorting

// The k-th largest of some values, and how many of those equal to it belong to the k largest.
struct Kth {
    float value;
    int64_t n_equal;       // values equal to it
    int64_t n_equal_kept;  // of them among the k largest
};

static int64_t gather_between(const float* values, int64_t n, float low, float high, float* out,
                              int64_t* n_above) {
    int64_t count = 0, above = 0;
#if defined(__AVX512F__)
    __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high);
    for (int64_t i = 0; i < n; i += W) {
        __m512 v = _mm512_load_ps(values + i);
        above += __builtin_popcount(_mm512_cmp_ps_mask(v, hi, _CMP_GT_OQ));
        __mmask16 mask = _mm512_cmp_ps_mask(v, lo, _CMP_GE_OQ) &
                         _mm512_cmp_ps_mask(v, hi, _CMP_LE_OQ);
        if (mask) {
            _mm512_storeu_ps(out + count, _mm512_maskz_compress_ps(mask, v));
            count += __builtin_popcount(mask);
        }
    }
#else
    for (int64_t i = 0; i < n; i++) {
        out[count] = values[i];
        count += (values[i] >= low) & (values[i] <= high);
        above += values[i] > high;
    }
#endif
    *n_above = above;
    return count;
}

// values[0 … n), of which more than k are positive; `around` is a guess, right or wrong.
// Around the last step's value there are few candidates; only where it is not found there are all
// positive values looked at.
static Kth kth_largest(const float* values, int64_t n, int64_t k, float around, float* candidates) {
    for (float reach : {0.02f, 0.2f, INFINITY}) {
        bool everything = std::isinf(reach);
        if (!everything && !(around > 0)) continue;
        float low = everything ? std::nextafter(0.0f, 1.0f) : around * (1 - reach);
        float high = everything ? INFINITY : around * (1 + reach);
        int64_t above;
        int64_t count = gather_between(values, n, low, high, candidates, &above);
        if (!(above < k && k <= above + count)) continue;
        float* kth = candidates + (k - above - 1);
        std::nth_element(candidates, kth, candidates + count, [](float a, float b) { return a > b; });
        Kth found{*kth, 0, 0};
        int64_t greater = above;
        for (int64_t i = 0; i < count; i++) {
            greater += candidates[i] > found.value;
            found.n_equal += candidates[i] == found.value;
        }
        found.n_equal_kept = k - greater;
        return found;
    }
    return Kth{INFINITY, 0, 0};  // not reached while the caller keeps its word
}

static int64_t count_at_least(const float* row, int64_t n, float value) {
    int64_t count = 0;
#if defined(__AVX512F__)
    for (int64_t i = 0; i < n; i += W)
        count += __builtin_popcount(
            _mm512_cmp_ps_mask(_mm512_load_ps(row + i), _mm512_set1_ps(value), _CMP_GE_OQ));
#else
    for (int64_t i = 0; i < n; i++) count += row[i] >= value;
#endif
    return count;
}

// A value such that exactly k of a row are at least as large, if ties allow it (then `surplus` is 0);
// otherwise the tied value itself, and how many of those equal to it are too many.
static float row_cut(const float* row, int64_t n, int64_t k, int64_t* surplus) {
    // Padding is −∞; what the search begins with must be finite, or halving leads nowhere.
    vec top = all(-INFINITY), bottom = all(INFINITY);
    for (int64_t i = 0; i < n; i += W) {
        vec v = load(row + i);
        top = where(v > top, v, top);
        bottom = where((v < bottom) & (v > all(-INFINITY)), v, bottom);
    }
    float high = top[0], low = bottom[0];
    for (int i = 1; i < W; i++) {
        high = std::max(high, top[i]);
        low = std::min(low, bottom[i]);
    }
    *surplus = 0;
    // Invariant: at least k are ≥ low, fewer than k are ≥ high (or high is the largest).
    if (count_at_least(row, n, high) >= k) low = high;
    for (int64_t count = count_at_least(row, n, low);;) {
        if (count == k) return low;
        float middle = low + (high - low) / 2;
        if (!(middle > low && middle < high)) {
            *surplus = count - k;
            return low;
        }
        int64_t there = count_at_least(row, n, middle);
        if (there >= k) {
            low = middle;
            count = there;
        } else {
            high = middle;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// One step

// Measured: a product that skips what is not active costs a little more per active latent than a
// dense one per latent.
constexpr double DENSE = 0.75;

class Arena {
  public:
    explicit Arena(float* start) : start_(start) {}
    float* floats(int64_t n) {
        float* at = start_ ? start_ + used_ : nullptr;
        used_ += (n + 31) / 32 * 32;  // each on cache lines of its own
        return at;
    }
    int32_t* ints(int64_t n) { return reinterpret_cast<int32_t*>(floats(n)); }
    int64_t used() const { return used_; }

  private:
    float* start_;
    int64_t used_ = 0;
};

struct Scratch {
    float *enc_panels, *dec_rows, *dec_panels, *dec_t_panels;
    float *dec_norm, *bias, *b_dec, *threshold;
    float *g_enc, *g_dec, *g_bias, *g_b_dec, *g_threshold, *g_norm, *grads;
    float *n_fired;
    float *pre, *acts, *rank, *candidates;
    float* last_places;  // 0, and −∞ for the padding
    float *errors, *grad, *values;
    int32_t* index;
    mask_t* masks;      // of the latents active in each sample of a tile
    uint64_t* samples;  // a mask for each latent: of the samples of the tile it is active in
    int32_t* n_in_sample;
    float *mag_scale, *mag_bias, *via, *via_errors, *via_grad;
    float *g_b_gate, *g_b_mag, *g_r_mag;
    float *dead_rows, *dead_panels, *dead_t_panels, *dead_acts, *dead_grad, *dead_error, *dead_rank;
    float *g_dead_enc, *g_dead_dec;
    int32_t *dead, *dead_start;

    // Returns how many floats it takes; from nowhere it only counts them.
    int64_t lay_out(const Config& c, float* start) {
        Arena a(start);
        int64_t D = padded(c.D), H = padded(c.H), B = c.max_batch;
        bool topk = c.architecture >= TOPK;
        int64_t rows = topk ? (B + TILE) : TILE;
        enc_panels = a.floats(c.D * H);
        dec_rows = a.floats(c.H * D);
        dec_panels = a.floats(c.H * D);
        dec_t_panels = a.floats(c.D * H);
        dec_norm = a.floats(H);
        bias = a.floats(H);
        b_dec = a.floats(D);
        threshold = a.floats(H);
        g_enc = a.floats(H * D);
        g_dec = a.floats(H * D);
        g_bias = a.floats(H);
        g_b_dec = a.floats(D);
        g_threshold = a.floats(H);
        g_norm = a.floats(H);
        grads = a.floats(c.P);
        n_fired = a.floats(H);
        pre = a.floats(rows * H);
        acts = a.floats(rows * H);
        bool over_batch = c.architecture == BATCHTOPK;
        rank = topk ? a.floats(over_batch ? rows * H : H) : nullptr;
        candidates = over_batch ? a.floats(rows * H + W) : nullptr;
        last_places = topk ? a.floats(H) : nullptr;
        errors = a.floats(c.n_levels * TILE * D);
        grad = a.floats(TILE * H);
        values = a.floats(H + W);
        index = a.ints(H + W);
        masks = reinterpret_cast<mask_t*>(a.floats(H / W * TILE / 2));
        samples = reinterpret_cast<uint64_t*>(a.floats(H * 2));
        n_in_sample = a.ints(TILE);
        if (c.architecture == GATED) {
            mag_scale = a.floats(H);
            mag_bias = a.floats(H);
            via = a.floats(TILE * H);
            via_errors = a.floats(TILE * D);
            via_grad = a.floats(TILE * H);
            g_b_gate = a.floats(H);
            g_b_mag = a.floats(H);
            g_r_mag = a.floats(H);
        }
        if (topk) {
            dead = a.ints(H);
            dead_start = a.ints(MAX_LEVELS + 1);
            dead_rows = a.floats(c.H * D);
            dead_panels = a.floats(c.H * D);
            dead_t_panels = a.floats(c.D * H);
            dead_acts = a.floats(TILE * H);
            dead_grad = a.floats(TILE * H);
            dead_error = a.floats(TILE * D);
            dead_rank = a.floats(H);
            g_dead_enc = a.floats(c.H * D);
            g_dead_dec = a.floats(c.H * D);
        }
        return a.used();
    }
};

class Step {
  public:
    Step(const Config& c, Sae& s, Scratch& w) : c(c), s(s), w(w), D(padded(c.D)), H(padded(c.H)) {}

    void run(const float* x, int64_t B, int64_t step, double step_size, double root_correction,
             double knob, bool with_figures) {
        this->x = x, this->B = B, this->step = step, this->knob = knob;
        this->figures = with_figures;
        for (double& figure : s.figures) figure = 0;
        prepare();
        if (c.architecture >= TOPK) {
            product(B, H / W, c.D, x, D, w.enc_panels, w.pre, H, w.bias, nullptr, 0);
            select();
        }
        for (int64_t t = 0; t < B; t += TILE) tile(t, std::min(TILE, B - t));
        collect();
        finish(step_size, root_correction);
    }

  private:
    const Config& c;
    Sae& s;
    Scratch& w;
    const int64_t D, H;  // padded
    const float* x = nullptr;
    int64_t B = 0, step = 0;
    double knob = 0;
    bool figures = false;
    int64_t n_dead = 0;
    bool is_dense = false;  // nearly all latents of the tile are active

    const float* parameter(int64_t offset) const { return s.params + offset; }

    void prepare() {
        const float* W_enc = parameter(c.W_enc);
        const float* W_dec = parameter(c.W_dec);
        pack(W_enc, c.H, 1, c.D, c.H, w.enc_panels);
        pack(W_dec, c.D, 1, c.H, c.D, w.dec_panels);
        pack(W_dec, 1, c.D, c.D, c.H, w.dec_t_panels);
        for (int64_t h = 0; h < c.H; h++) {
            float* row = w.dec_rows + h * D;
            std::memcpy(row, W_dec + h * c.D, c.D * sizeof(float));
            for (int64_t d = c.D; d < D; d++) row[d] = 0;
            w.dec_norm[h] = std::sqrt(dot(D / W, row, row));
        }
        auto copy = [](float* to, const float* from, int64_t n, int64_t width, float rest) {
            std::memcpy(to, from, n * sizeof(float));
            for (int64_t i = n; i < width; i++) to[i] = rest;
        };
        for (int64_t h = c.H; h < H; h++) w.dec_norm[h] = 0;
        copy(w.b_dec, parameter(c.b_dec), c.D, D, 0);
        copy(w.bias, parameter(c.b_enc), c.H, H, 0);
        if (c.apply_b_dec)
            for (int64_t d = 0; d < c.D; d++) {
                float b = w.b_dec[d];
                for (int64_t h = 0; h < c.H; h++) w.bias[h] -= b * W_enc[d * c.H + h];
            }
        if (c.architecture == JUMPRELU) {
            float* threshold = s.params + c.threshold;
            for (int64_t h = 0; h < c.H; h++) threshold[h] = threshold[h] < 0 ? 0 : threshold[h];
            copy(w.threshold, threshold, c.H, H, INFINITY);
        }
        if (c.architecture == GATED) {
            const float *b_mag = parameter(c.b_mag), *r_mag = parameter(c.r_mag);
            const float* b_gate = parameter(c.b_enc);
            for (int64_t h = 0; h < H; h++) {
                w.mag_scale[h] = h < c.H ? std::exp(r_mag[h]) : 0;
                w.mag_bias[h] = h < c.H ? b_mag[h] - w.mag_scale[h] * b_gate[h] : 0;
            }
            for (float* sums : {w.g_b_gate, w.g_b_mag, w.g_r_mag})
                std::memset(sums, 0, H * sizeof(float));
        }
        std::memset(w.g_enc, 0, c.H * D * sizeof(float));
        std::memset(w.g_dec, 0, c.H * D * sizeof(float));
        std::memset(w.g_b_dec, 0, D * sizeof(float));
        for (float* sums : {w.g_bias, w.g_threshold, w.g_norm, w.n_fired})
            std::memset(sums, 0, H * sizeof(float));
        if (c.architecture >= TOPK)
            for (int64_t h = 0; h < H; h++) w.last_places[h] = h < c.H ? 0 : -INFINITY;
        if (c.architecture >= TOPK && s.aux_coefficient != 0) prepare_dead();
    }

    bool is_dead(int64_t h) const { return s.last_fired[h] < step - 1 - c.dead_window; }

    // Dead latents by auxiliary group: one for the whole SAE, or one per Matryoshka level.
    int64_t n_groups() const { return c.matryoshka_aux ? c.n_levels : 1; }
    int64_t group_end(int64_t g) const { return c.matryoshka_aux ? c.widths[g] : c.H; }

    void prepare_dead() {
        n_dead = 0;
        int64_t h = 0;
        for (int64_t g = 0; g < n_groups(); g++) {
            w.dead_start[g] = int32_t(n_dead);
            for (; h < group_end(g); h++)
                if (is_dead(h)) w.dead[n_dead++] = int32_t(h);
        }
        w.dead_start[n_groups()] = int32_t(n_dead);
        for (int64_t i = 0; i < n_dead; i++)
            std::memcpy(w.dead_rows + i * D, w.dec_rows + w.dead[i] * D, D * sizeof(float));
        std::memset(w.g_dead_enc, 0, n_dead * D * sizeof(float));
        std::memset(w.g_dead_dec, 0, n_dead * D * sizeof(float));
    }

    // -- selection: w.acts of the whole batch from w.pre

    void select() {
        if (c.architecture == BATCHTOPK)
            select_over_batch();
        else
            select_by_sample();
    }

    // What the latents of a sample are ranked by. Those of the padding are never among the largest.
    vec rank(const float* pre, int64_t h) const {
        vec v = load(pre + h);
        if (c.rescale) v *= load(w.dec_norm + h);
        return v + load(w.last_places + h);
    }

    void select_over_batch() {
        int64_t k = int64_t(knob * double(B));
        vec smallest = all(INFINITY);  // of what is positive
        ivec positive{};
        for (int64_t t = 0; t < B; t++)
            for (int64_t h = 0; h < H; h += W) {
                vec v = rank(w.pre + t * H, h);
                store(w.rank + t * H + h, v);
                positive -= v > vec{};  // a true comparison is −1
                smallest = where((v > vec{}) & (v < smallest), v, smallest);
            }
        float low = INFINITY;
        int64_t n_positive = 0;
        for (int i = 0; i < W; i++) {
            low = std::min(low, smallest[i]);
            n_positive += positive[i];
        }
        Kth kth{low, 1, 1};
        if (k < n_positive)
            kth = k ? kth_largest(w.rank, B * H, k, float(s.kth_value), w.candidates)
                    : Kth{INFINITY, 0, 0};
        s.kth_value = kth.value;
        for (int64_t i = 0; i < B * H; i += W) {
            vec v = load(w.pre + i);
            store(w.acts + i, v * where(load(w.rank + i) >= all(kth.value), all(1.0f)));
        }
        if (kth.n_equal > kth.n_equal_kept) {
            int64_t left = kth.n_equal_kept;
            for (int64_t i = 0; i < B * H; i++)
                if (w.rank[i] == kth.value && left-- <= 0) w.acts[i] = 0;
        }
        if (std::isfinite(kth.value)) {
            double lr = s.topk_threshold_lr;
            *s.topk_threshold = (1 - lr) * *s.topk_threshold + lr * double(kth.value);
        }
    }

    void select_by_sample() {
        int64_t k = int64_t(knob);
        int64_t n_more = int64_t(knob * double(B)) - k * B;  // samples that keep one more
        for (int64_t t = 0; t < B; t++) {
            float* ranks = w.rank;
            for (int64_t h = 0; h < H; h += W) store(ranks + h, rank(w.pre + t * H, h));
            int64_t mine = k + (t < n_more), surplus = 0;
            float cut = 0;
            bool all_positive = count_at_least(ranks, H, std::nextafter(0.0f, 1.0f)) <= mine;
            if (!all_positive) cut = row_cut(ranks, H, mine, &surplus);
            for (int64_t h = 0; h < H; h += W) {
                vec r = load(ranks + h);
                ivec keep = (r >= all(cut)) & (r > vec{});
                store(w.acts + t * H + h, load(w.pre + t * H + h) * where(keep, all(1.0f)));
            }
            for (int64_t h = c.H - 1; surplus > 0 && h >= 0; h--)
                if (ranks[h] == cut) w.acts[t * H + h] = 0, surplus--;
        }
    }

    // -- a tile of samples

    void tile(int64_t first, int64_t T) {
        const float* xt = x + first * D;
        const bool topk = c.architecture >= TOPK;
        float* pre = topk ? w.pre + first * H : w.pre;
        float* acts = topk ? w.acts + first * H : w.acts;
        if (!topk) {
            product(T, H / W, c.D, xt, D, w.enc_panels, pre, H, w.bias, nullptr, 0);
            if (c.architecture == GATED)
                activate_gated(T, pre, acts);
            else
                activate(T, pre, acts);
        }
        int64_t n_active = decode(T, xt, acts);
        s.n_active += double(n_active);
        s.figures[N_ACTIVE] += double(n_active);
        float* error = w.errors + (c.n_levels - 1) * TILE * D;  // of the whole SAE
        if (c.architecture == GATED) decode_via_gate(T, xt);
        if (figures) measure(T, pre, acts);
        if (n_dead) auxiliary(T, xt, pre);
        sum_levels(T);
        if (topk) {
            sparse_gradient(T, acts, n_active);
        } else {
            product(T, H / W, c.D, error, D, w.dec_t_panels, w.grad, H, nullptr, nullptr, 0);
            if (c.architecture == STANDARD)
                standard_gradient(T, acts);
            else if (c.architecture == GATED)
                gated_gradient(T, acts);
            else if (c.mode == TANH)
                c.ste_to_input ? jumprelu_gradient<TANH, true>(T, pre, acts)
                               : jumprelu_gradient<TANH, false>(T, pre, acts);
            else if (c.mode == STEP)
                c.ste_to_input ? jumprelu_gradient<STEP, true>(T, pre, acts)
                               : jumprelu_gradient<STEP, false>(T, pre, acts);
            else
                c.ste_to_input ? jumprelu_gradient<QUADRATIC, true>(T, pre, acts)
                               : jumprelu_gradient<QUADRATIC, false>(T, pre, acts);
            if (c.has_pre_act_loss) pre_act_gradient(T, pre);
        }
        outer_products(T, xt, acts);
    }

    void activate(int64_t T, const float* pre, float* acts) {
        for (int64_t h = 0; h < H; h += W) {
            vec threshold = c.architecture == JUMPRELU ? load(w.threshold + h) : vec{};
            for (int64_t t = 0; t < T; t++) {
                vec v = load(pre + t * H + h);
                // As sae_lens has it, so that NaN stays NaN: a relu, and a product for JumpReLU.
                store(acts + t * H + h, c.architecture == STANDARD
                                            ? where(v <= vec{}, vec{}, v)
                                            : v * where(v > threshold, all(1.0f)));
            }
        }
    }

    // The gate's own activations beside those of the SAE; no gradient passes the gate's jump.
    void activate_gated(int64_t T, const float* gate, float* acts) {
        const vec one = all(1.0f);
        for (int64_t h = 0; h < H; h += W) {
            vec scale = load(w.mag_scale + h), bias = load(w.mag_bias + h);
            for (int64_t t = 0; t < T; t++) {
                vec v = load(gate + t * H + h), mag = v * scale + bias;
                store(w.via + t * H + h, v * where(v > vec{}, one));
                store(acts + t * H + h, mag * where((v > vec{}) & (mag > vec{}), one));
            }
        }
    }

    void decode_via_gate(int64_t T, const float* xt) {
        for (int64_t t = 0; t < T; t++)
            for (int64_t d = 0; d < D; d += W)
                store(w.via_errors + t * D + d, load(w.b_dec + d) - load(xt + t * D + d));
        product(T, D / W, c.H, w.via, H, w.dec_panels, w.via_errors, D, nullptr, w.via_errors, D);
    }

    // Who is active where, and the errors of every level.
    int64_t decode(int64_t T, const float* xt, const float* acts) {
        int64_t n_active = 0;
        std::memset(w.masks, 0, H / W * TILE * sizeof(mask_t));
        for (int64_t t = 0; t < T; t++) {
            w.n_in_sample[t] = int32_t(mask_active(acts + t * H, H, w.masks + t));
            n_active += w.n_in_sample[t];
        }
        for (int64_t h = 0; h < H; h += W) transpose_masks(w.masks + h / W * TILE, w.samples + h);
        for (int64_t h = 0; h < c.H; h++)
            w.n_fired[h] += float(__builtin_popcountll(w.samples[h]));

        for (int64_t t = 0; t < T; t++)
            for (int64_t d = 0; d < D; d += W)
                store(w.errors + t * D + d, load(w.b_dec + d) - load(xt + t * D + d));
        is_dense = c.n_levels == 1 && double(n_active) > DENSE * double(T * c.H);
        if (is_dense) {
            product(T, D / W, c.H, acts, H, w.dec_panels, w.errors, D, nullptr, w.errors, D);
            return n_active;
        }
        for (int64_t t = 0; t < T; t++) {
            int64_t n = w.n_in_sample[t], done = 0;
            list_active(acts + t * H, H, w.masks + t, w.index, w.values);
            for (int64_t level = 0; level < c.n_levels; level++) {
                float* error = w.errors + (level * TILE + t) * D;
                if (level) std::memcpy(error, error - TILE * D, D * sizeof(float));
                int64_t end = n;
                if (level < c.n_levels - 1)
                    for (end = done; end < n && w.index[end] < c.widths[level];) end++;
                gather(D / W, end - done, w.index + done, w.values + done, w.dec_rows, D, error);
                done = end;
            }
        }
        return n_active;
    }

    // The error that a latent is held to: the sum of those of its level and all beyond.
    void sum_levels(int64_t T) {
        for (int64_t level = c.n_levels - 2; level >= 0; level--) {
            float* error = w.errors + level * TILE * D;
            for (int64_t i = 0; i < T * D; i += W)
                store(error + i, load(error + i) + load(error + TILE * D + i));
        }
        for (int64_t d = 0; d < D; d += W) {
            vec sum = load(w.g_b_dec + d);
            for (int64_t t = 0; t < T; t++) sum += load(w.errors + t * D + d);
            store(w.g_b_dec + d, sum);
        }
    }

    int64_t level_of(int64_t h) const {
        int64_t level = 0;
        while (level < c.n_levels - 1 && h >= c.widths[level]) level++;
        return level;
    }

    // w.grad where something is active; g_bias with it.
    void sparse_gradient(int64_t T, const float* acts, int64_t n_active) {
        // Measured: a dot product of its own costs about four times its share of a dense product.
        bool dense = c.n_levels == 1 && 4 * n_active > T * c.H;
        if (dense)
            product(T, H / W, c.D, w.errors, D, w.dec_t_panels, w.grad, H, nullptr, nullptr, 0);
        if (is_dense)  // then the outer products will read all of it
            for (int64_t i = 0; i < T * H; i += W)
                store(w.grad + i, where(load(acts + i) != vec{}, load(w.grad + i)));
        for (int64_t h = 0; h < c.H; h++) {
            const float* errors = w.errors + level_of(h) * TILE * D;
            const float* row = w.dec_rows + h * D;
            float sum = 0;
            for (uint64_t samples = w.samples[h]; samples; samples &= samples - 1) {
                int64_t t = __builtin_ctzll(samples);
                if (!dense) w.grad[t * H + h] = dot(D / W, errors + t * D, row);
                sum += w.grad[t * H + h];
            }
            w.g_bias[h] += sum;
        }
    }

    template <int MODE, bool STE_TO_INPUT>
    void jumprelu_gradient(int64_t T, const float* pre, const float* acts) {
        const float coefficient = float(knob);
        const float inverse_bandwidth = float(1 / s.bandwidth);
        const vec half_bandwidth = all(float(s.bandwidth / 2));
        const float target = float(s.target_l0);
        const float pull = 2 * coefficient / (float(s.bandwidth) * target);
        const vec one = all(1.0f);
        for (int64_t h = 0; h < H; h += W) {
            vec threshold = load(w.threshold + h), norm = load(w.dec_norm + h);
            vec ste = threshold * all(inverse_bandwidth);
            vec slope = all(float(s.tanh_scale)) * norm;
            vec twice = all(-2.0f) * slope, weight = all(2 * coefficient) * slope;
            vec step_pull = all(coefficient * inverse_bandwidth / 2);
            vec g_threshold{}, g_bias{}, g_norm{};
            for (int64_t t = 0; t < T; t++) {
                vec v = load(pre + t * H + h), act = load(acts + t * H + h);
                vec g = load(w.grad + t * H + h);
                if (MODE == TANH) {
                    // 1 − tanh²(u) = 4 e / (1 + e)² with e = exp(−2u)
                    vec e = exp_negative(twice * act);
                    vec sum = one + e;
                    vec slant = weight * e / (sum * sum);
                    g += slant;
                    g_norm += slant * act;
                }
                vec q = ste * g;
                if (MODE == STEP) q += step_pull;
                if (MODE == QUADRATIC) q += all((float(w.n_in_sample[t]) - target) * pull);
                q = where(abs_(v - threshold) < half_bandwidth, q);
                g_threshold -= q;
                g = where(v > threshold, g);
                if (STE_TO_INPUT) g += q;
                g_bias += g;
                store(w.grad + t * H + h, g);
            }
            store(w.g_threshold + h, load(w.g_threshold + h) + g_threshold);
            store(w.g_bias + h, load(w.g_bias + h) + g_bias);
            store(w.g_norm + h, load(w.g_norm + h) + g_norm / (norm + where(norm == vec{}, one)));
        }
    }

    void pre_act_gradient(int64_t T, const float* pre) {
        const float coefficient = float(s.pre_act_coefficient / 2);
        for (int64_t h = 0; h < c.H; h++) {
            if (!is_dead(h)) continue;
            float threshold = w.threshold[h], pulled = 0, n_below = 0;
            float weight = coefficient * w.dec_norm[h];
            for (int64_t t = 0; t < T; t++) {
                float below = threshold - pre[t * H + h];
                if (!(below > 0)) continue;
                pulled += below;
                n_below += 1;
                w.grad[t * H + h] -= weight;
            }
            w.g_norm[h] += coefficient * pulled;
            w.g_threshold[h] += weight * n_below;
            w.g_bias[h] -= weight * n_below;
        }
    }

    void standard_gradient(int64_t T, const float* acts) {
        const vec half = all(float(knob / 2));
        for (int64_t h = 0; h < H; h += W) {
            vec pull = half * load(w.dec_norm + h), g_bias{}, sum{};
            for (int64_t t = 0; t < T; t++) {
                vec act = load(acts + t * H + h);
                vec g = where(act > vec{}, load(w.grad + t * H + h) + pull);
                store(w.grad + t * H + h, g);
                g_bias += g;
                sum += act;
            }
            store(w.g_bias + h, load(w.g_bias + h) + g_bias);
            store(w.g_norm + h, load(w.g_norm + h) + half * sum);
        }
    }

    void gated_gradient(int64_t T, const float* acts) {
        product(T, H / W, c.D, w.via_errors, D, w.dec_t_panels, w.via_grad, H, nullptr, nullptr, 0);
        const vec half = all(float(knob / 2));
        for (int64_t h = 0; h < H; h += W) {
            vec scale = load(w.mag_scale + h), pull = half * load(w.dec_norm + h);
            vec b_gate{}, b_mag{}, r_mag{}, bias{}, sum{};
            for (int64_t t = 0; t < T; t++) {
                vec act = load(acts + t * H + h), via = load(w.via + t * H + h);
                vec mag = where(act > vec{}, load(w.grad + t * H + h));
                vec gate = where(via > vec{}, load(w.via_grad + t * H + h) + pull);
                vec g = gate + mag * scale;
                store(w.grad + t * H + h, g);
                b_mag += mag;
                r_mag += mag * act;  // where mag is not 0, act is the magnitude itself
                b_gate += gate;
                bias += g;
                sum += via;
            }
            store(w.g_b_gate + h, load(w.g_b_gate + h) + b_gate);
            store(w.g_b_mag + h, load(w.g_b_mag + h) + b_mag);
            store(w.g_r_mag + h, load(w.g_r_mag + h) + r_mag);
            store(w.g_bias + h, load(w.g_bias + h) + bias);
            store(w.g_norm + h, load(w.g_norm + h) + half * sum);
        }
        for (int64_t d = 0; d < D; d += W) {
            vec sum = load(w.g_b_dec + d);
            for (int64_t t = 0; t < T; t++) sum += load(w.via_errors + t * D + d);
            store(w.g_b_dec + d, sum);
        }
        outer(T, c.H, D / W, w.via, H, w.via_errors, D, w.g_dec, D);
    }

    void outer_products(int64_t T, const float* xt, const float* acts) {
        // Beyond what is active the encoder's gradient is 0, unless a loss reaches past thresholds.
        if (is_dense || c.ste_to_input || c.has_pre_act_loss || c.architecture == GATED) {
            outer(T, c.H, D / W, w.grad, H, xt, D, w.g_enc, D);
            outer(T, c.H, D / W, acts, H, w.errors, D, w.g_dec, D);
            return;
        }
        for (int64_t h = 0; h < c.H; h++) {
            const float* errors = w.errors + level_of(h) * TILE * D;
            for (int64_t d = 0; d < D; d += BLOCK * W)
                gather_samples_last<BLOCK>(std::min<int64_t>(BLOCK, (D - d) / W), w.samples[h],
                                           acts + h, w.grad + h, H, errors + d, xt + d, D,
                                           w.g_dec + h * D + d, w.g_enc + h * D + d);
        }
    }

    // -- dead latents reconstruct what the living leave over (TopK's auxiliary loss)

    void auxiliary(int64_t T, const float* xt, const float* pre) {
        for (int64_t g = 0; g < n_groups(); g++) {
            int64_t start = w.dead_start[g], n = w.dead_start[g + 1] - start, N = padded(n);
            if (!n) continue;
            const int32_t* dead = w.dead + start;
            const float* rows = w.dead_rows + start * D;
            const float* error = w.errors + (c.matryoshka_aux ? g : c.n_levels - 1) * TILE * D;
            int64_t k = std::max<int64_t>(c.D / 2, 1);
            double scale = s.aux_coefficient * std::min(double(n) / double(k), 1.0);
            activate_dead(T, pre, dead, n, std::min(k, n));
            // Packed anew for each tile: little beside the products, and rarely needed at all.
            pack(rows, D, 1, n, c.D, w.dead_panels);
            pack(rows, 1, D, c.D, n, w.dead_t_panels);
            // The error of their reconstruction: z · W_dec − residual, and the residual is −error.
            product(T, D / W, n, w.dead_acts, N, w.dead_panels, w.dead_error, D, nullptr, error, D);
            if (figures) s.figures[AUX] += scale / double(B) * squares(w.dead_error, T * D);
            for (int64_t i = 0; i < T * D; i += W)
                store(w.dead_error + i, all(float(scale)) * load(w.dead_error + i));
            product(T, N / W, c.D, w.dead_error, D, w.dead_t_panels, w.dead_grad, N, nullptr,
                    nullptr, 0);
            for (int64_t i = 0; i < n; i++) {
                float sum = 0;
                for (int64_t t = 0; t < T; t++) {
                    float& gradient = w.dead_grad[t * N + i];
                    if (w.dead_acts[t * N + i] == 0) gradient = 0;
                    sum += gradient;
                }
                w.g_bias[dead[i]] += sum;
            }
            outer(T, n, D / W, w.dead_acts, N, w.dead_error, D, w.g_dead_dec + start * D, D);
            outer(T, n, D / W, w.dead_grad, N, xt, D, w.g_dead_enc + start * D, D);
        }
    }

    // The k largest of the dead latents of each sample. Decoder norms rank them, and cancel after.
    void activate_dead(int64_t T, const float* pre, const int32_t* dead, int64_t n, int64_t k) {
        int64_t N = padded(n);
        for (int64_t t = 0; t < T; t++) {
            float* acts = w.dead_acts + t * N;
            for (int64_t i = 0; i < n; i++) acts[i] = pre[t * H + dead[i]];
            for (int64_t i = n; i < N; i++) acts[i] = 0;
            if (k == n) continue;
            float* rank = w.dead_rank;
            for (int64_t i = 0; i < n; i++)
                rank[i] = c.rescale ? acts[i] * w.dec_norm[dead[i]] : acts[i];
            for (int64_t i = n; i < N; i++) rank[i] = -INFINITY;
            int64_t surplus;
            float cut = row_cut(rank, N, k, &surplus);
            for (int64_t i = n - 1; i >= 0; i--)
                if (!(rank[i] >= cut) || (rank[i] == cut && surplus-- > 0)) acts[i] = 0;
        }
    }

    // -- losses

    static double squares(const float* values, int64_t n) {
        vec sum{};
        for (int64_t i = 0; i < n; i += W) sum += load(values + i) * load(values + i);
        return double(total(sum));
    }

    void measure(int64_t T, const float* pre, const float* acts) {
        const double share = 1 / double(B);
        for (int64_t level = 0; level < c.n_levels; level++) {
            Figure figure = level == c.n_levels - 1 ? MSE : Figure(INNER + level);
            s.figures[figure] += share * squares(w.errors + level * TILE * D, T * D);
        }
        if (c.architecture == GATED) s.figures[AUX] += share * squares(w.via_errors, T * D);
        double sparsity = 0;
        if (c.architecture == STANDARD || c.architecture == GATED || (c.architecture == JUMPRELU && c.mode == TANH)) {
            for (int64_t h = 0; h < H; h += W) {
                vec norm = load(w.dec_norm + h), sum{};
                vec twice = all(float(-2 * s.tanh_scale)) * norm;
                for (int64_t t = 0; t < T; t++) {
                    vec act = load((c.architecture == GATED ? w.via : acts) + t * H + h);
                    if (c.architecture != JUMPRELU) {
                        sum += act * norm;
                    } else {
                        vec e = exp_negative(twice * act);
                        sum += (all(1.0f) - e) / (all(1.0f) + e);
                    }
                }
                sparsity += double(total(sum));
            }
        } else if (c.architecture == JUMPRELU) {
            for (int64_t t = 0; t < T; t++) {
                double n = w.n_in_sample[t], excess = n - s.target_l0;
                sparsity += c.mode == STEP ? n : 2 / s.target_l0 * excess * excess;
            }
        }
        s.figures[SPARSITY] += share * knob * sparsity;
        if (!c.has_pre_act_loss) return;
        for (int64_t h = 0; h < c.H; h++) {
            if (!is_dead(h)) continue;
            double below = 0;
            for (int64_t t = 0; t < T; t++)
                below += std::max(0.0f, w.threshold[h] - pre[t * H + h]);
            s.figures[PRE_ACT] += share * s.pre_act_coefficient * below * w.dec_norm[h];
        }
    }

    // -- the flat gradient, and the step itself

    void collect() {
        for (int64_t i = 0; i < n_dead; i++) {
            int64_t h = w.dead[i];
            for (int64_t d = 0; d < D; d += W) {
                float* dec = w.g_dec + h * D + d;
                float* enc = w.g_enc + h * D + d;
                store(dec, load(dec) + load(w.g_dead_dec + i * D + d));
                store(enc, load(enc) + load(w.g_dead_enc + i * D + d));
            }
        }
        const float* W_enc = parameter(c.W_enc);
        const float* W_dec = parameter(c.W_dec);
        std::memset(w.grads, 0, c.P * sizeof(float));
        const float* g_b_enc = c.architecture == GATED ? w.g_b_gate : w.g_bias;
        std::memcpy(w.grads + c.b_enc, g_b_enc, c.H * sizeof(float));
        if (c.architecture == GATED)
            for (int64_t h = 0; h < c.H; h++) {
                w.grads[c.b_mag + h] = w.g_b_mag[h];
                w.grads[c.r_mag + h] = w.g_r_mag[h] - parameter(c.b_mag)[h] * w.g_b_mag[h];
            }
        std::memcpy(w.grads + c.b_dec, w.g_b_dec, c.D * sizeof(float));
        if (c.architecture == JUMPRELU)
            std::memcpy(w.grads + c.threshold, w.g_threshold, c.H * sizeof(float));
        constexpr int64_t BLOCKED = 16;  // both sides of a transposition stay in the cache
        for (int64_t h0 = 0; h0 < c.H; h0 += BLOCKED)
            for (int64_t d0 = 0; d0 < c.D; d0 += BLOCKED)
                for (int64_t d = d0; d < std::min(d0 + BLOCKED, c.D); d++)
                    for (int64_t h = h0; h < std::min(h0 + BLOCKED, c.H); h++)
                        w.grads[c.W_enc + d * c.H + h] = w.g_enc[h * D + d];
        if (c.apply_b_dec)
            for (int64_t d = 0; d < c.D; d++) {
                float b = w.b_dec[d], sum = 0;
                for (int64_t h = 0; h < c.H; h++) {
                    w.grads[c.W_enc + d * c.H + h] -= b * w.g_bias[h];
                    sum += W_enc[d * c.H + h] * w.g_bias[h];
                }
                w.grads[c.b_dec + d] -= sum;
            }
        for (int64_t h = 0; h < c.H; h++) {
            // A zero row has no direction to move along.
            float along = w.dec_norm[h] > 0 ? w.g_norm[h] / w.dec_norm[h] : 0;
            for (int64_t d = 0; d < c.D; d++)
                w.grads[c.W_dec + h * c.D + d] =
                    w.g_dec[h * D + d] + along * W_dec[h * c.D + d];
        }
    }

    void finish(double step_size, double root_correction) {
        const float scale = 2 / float(B);  // gradients are B/2 times their name so far
        vec sums[4] = {};
        for (int64_t i = 0; i < c.P; i += W) {
            vec g = loadu(w.grads + i);
            sums[i / W % 4] += g * g;
        }
        float norm = std::sqrt(total((sums[0] + sums[1]) + (sums[2] + sums[3]))) * scale;
        s.figures[GRAD_NORM] = norm;
        // A mask hides a threshold that is not a number, where sae_lens' products would spread it.
        bool is_lost = !std::isfinite(norm);
        if (c.architecture == JUMPRELU)
            for (int64_t h = 0; h < c.H; h++) is_lost |= std::isnan(w.threshold[h]);
        if (is_lost && *s.diverged_at < 0) *s.diverged_at = step;
        float clip = 1 / (norm + 1e-6f);
        clip = (clip > 1 ? 1 : clip) * scale;  // NaN stays NaN
        const float beta1 = float(1 - c.beta1), beta2 = float(c.beta2), rest2 = float(1 - c.beta2);
        const float rate = float(step_size), correction = float(root_correction);
        for (int64_t i = 0; i < c.P; i++) {
            float g = w.grads[i] * clip;
            float m = s.exp_avg[i] + beta1 * (g - s.exp_avg[i]);
            float v = s.exp_avg_sq[i] * beta2 + rest2 * g * g;
            s.exp_avg[i] = m;
            s.exp_avg_sq[i] = v;
            s.params[i] -= rate * (m / (std::sqrt(v) / correction + 1e-8f));
        }
        for (int64_t h = 0; h < c.H; h++) {
            if (w.n_fired[h] > 0) s.last_fired[h] = step;
            s.window_fired[h] += w.n_fired[h];
        }
    }
};

extern "C" {

// Floats of scratch memory that `advance` needs.
int64_t scratch_floats(const Config* config) {
    Scratch scratch;
    return scratch.lay_out(*config, nullptr);
}

// Bytes of the two structures, for the caller to check its own against.
int64_t config_bytes() { return sizeof(Config); }
int64_t sae_bytes() { return sizeof(Sae); }
int64_t vector_floats() { return W; }

// Take n_steps steps with each of some SAEs.
// x: a [batch × Dp] array per step, rows padded with zeros. knobs: [n_steps × n_saes].
// scratch: `scratch_floats` floats on a 64-byte boundary, for this call alone.
void advance(const Config* config, Sae* saes, int64_t n_saes, int64_t n_steps,
             const float* const* x, const int64_t* batch, int64_t first_step,
             const double* step_sizes, const double* root_corrections, const double* knobs,
             int64_t with_figures, float* scratch) {
    Scratch laid_out;
    laid_out.lay_out(*config, scratch);
    for (int64_t i = 0; i < n_saes; i++) {
        Step step(*config, saes[i], laid_out);
        for (int64_t n = 0; n < n_steps; n++)
            step.run(x[n], batch[n], first_step + n, step_sizes[n], root_corrections[n],
                     knobs[n * n_saes + i], with_figures && n == n_steps - 1);
    }
}
}
