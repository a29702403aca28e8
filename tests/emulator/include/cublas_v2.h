/* Stand-in for the pieces of cuBLAS that kernels/cuda/blas.cu uses: plain loops, sums in double, column-major as the
 * original.  Triangles that a call must not touch are not touched. */
#ifndef MQ_TESTS_EMULATOR_CUBLAS_V2_H
#define MQ_TESTS_EMULATOR_CUBLAS_V2_H

#include <cuda_runtime.h>

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_EXECUTION_FAILED = 13 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasFillMode_t { CUBLAS_FILL_MODE_LOWER = 0, CUBLAS_FILL_MODE_UPPER = 1 };
enum cublasSideMode_t { CUBLAS_SIDE_LEFT = 0, CUBLAS_SIDE_RIGHT = 1 };
enum cublasDiagType_t { CUBLAS_DIAG_NON_UNIT = 0, CUBLAS_DIAG_UNIT = 1 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_PEDANTIC_MATH = 2 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
typedef struct emu_cublas *cublasHandle_t;

typedef enum libraryPropertyType_t { MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL } libraryPropertyType;

#define EMU_CUBLAS extern "C" cublasStatus_t
EMU_CUBLAS cublasCreate_v2(cublasHandle_t *out);
EMU_CUBLAS cublasDestroy_v2(cublasHandle_t h);
EMU_CUBLAS cublasGetProperty(libraryPropertyType type, int *value);
EMU_CUBLAS cublasSetStream_v2(cublasHandle_t h, cudaStream_t s);
EMU_CUBLAS cublasSetMathMode(cublasHandle_t h, cublasMath_t mode);
EMU_CUBLAS cublasSgemm_v2(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                          const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                          float *c, int ldc);
EMU_CUBLAS cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                        const void *alpha, const void *a, cudaDataType_t a_type, int lda, const void *b,
                        cudaDataType_t b_type, int ldb, const void *beta, void *c, cudaDataType_t c_type, int ldc,
                        cublasComputeType_t compute, cublasGemmAlgo_t algo);
EMU_CUBLAS cublasSsyrk_v2(cublasHandle_t h, cublasFillMode_t uplo, cublasOperation_t trans, int n, int k,
                          const float *alpha, const float *a, int lda, const float *beta, float *c, int ldc);
EMU_CUBLAS cublasStrsm_v2(cublasHandle_t h, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                          cublasDiagType_t diag, int m, int n, const float *alpha, const float *a, int lda, float *b,
                          int ldb);

#endif
